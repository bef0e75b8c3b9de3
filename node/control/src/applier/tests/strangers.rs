//! What does not bear our label, and what a restored state does not know.

use sandkeeper_statemachine::Origin;

use super::*;
use crate::applier::reconcile::{Heard, Stranger};

fn stranger(origin: Origin) -> Heard {
    Heard::Stranger(Stranger { generation: 1, origin, adoptable: None })
}

#[test]
fn what_bears_no_label_of_ours_is_left_alone() {
    let mut world = World::new();
    let unknown = SandboxId::Fast([5; 16]);
    for origin in [Origin::Unlabelled, Origin::Other] {
        world.view.note(&unknown, 1, stranger(origin));
        assert_eq!(reconcile(&world.state, &agent(), &world.view, &unknown), [], "{origin:?}");
    }
}

#[test]
fn what_was_adopted_is_labelled_first_and_then_like_any_other() {
    let mut world = World::new();
    let id = world.id.clone();
    world.view.note(&id, 1, stranger(Origin::Unlabelled));
    assert_eq!(world.steps(), [Step::Adopt(1)]);
    world.sent(1, 1, SentKind::Adopt);
    assert_eq!(world.steps(), [], "it was told");
    let target = world.target();
    world.decide(Command::TerminateSandbox(target));
    assert_eq!(world.steps(), [], "it is not ours to end yet");
    world.view.sent.get_mut(&id).unwrap().overdue = true;
    assert_eq!(world.steps(), [Step::Adopt(1)]);
    world.view.note(&id, 1, Heard::Ours(Some(runs())));
    assert_eq!(world.steps(), [Step::Terminate(1)]);
}

/// The agent refuses to create it, which proves that nothing was started there.
#[test]
fn what_another_cluster_has_under_the_id_of_one_of_ours_is_not_ours() {
    let mut world = World::new();
    let id = world.id.clone();
    world.view.note(&id, 1, stranger(Origin::Other));
    assert_eq!(world.steps(), [Step::Create(1)]);
}

#[test]
fn before_a_restore_is_confirmed_nothing_is_ended_or_started_that_may_have_changed_since() {
    let mut world = World::new();
    world.decide(Command::CreateCluster { cluster_id: Uuid::from_u128(1), cluster_version: 1 });
    world.decide(Command::RestoreCluster { cluster_id: Uuid::from_u128(2) });
    assert_eq!(world.steps(), [], "it may run elsewhere by now");
    let orphan = SandboxId::Fast([5; 16]);
    world.view.actual.insert(orphan.clone(), (1, runs()));
    let exited = Actual::Exited { exit_code: None, reason: String::new(), expired: false, lease_over: false };
    let of_orphan = |world: &World| reconcile(&world.state, &agent(), &world.view, &orphan);
    assert_eq!(of_orphan(&world), [], "it was made after the backup");
    // A later generation than the backup knows.
    world.has(3, runs());
    assert_eq!(world.steps(), []);

    world.decide(Command::ConfirmRestore);
    assert_eq!(of_orphan(&world), [Step::Orphan(1)]);
    world.view.actual.insert(orphan.clone(), (1, exited));
    assert_eq!(of_orphan(&world), [Step::Terminate(1)]);
    assert_eq!(world.steps(), [Step::Create(1), Step::Terminate(3)]);
}
