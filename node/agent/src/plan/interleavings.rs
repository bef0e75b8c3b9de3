//! One story in every order in which its messages can come: "A create sits in an old session's buffer; the agent reconnects;
//! the inventory lacks it; the slot is sold; the buffered create arrives."

use std::sync::Arc;

use super::tests::{fresh_state, incarnation};
use super::*;
use crate::config::Capacity;

/// The session that the agent gave up, and the one that it has now.
const OLD: u64 = 1;
const NEW: u64 = 2;

/// An agent, and what the leader of the new session has learnt of it.
struct Story {
    state: State,
    /// The sandboxes that the runtime was told to start, in this order.
    started: Vec<String>,
    /// Whether the inventory, once it is sent, has "a".
    inventory_has_a: Option<bool>,
}

impl Story {
    /// The old session is obeyed, in term 4.
    fn new() -> Self {
        let capacity = Capacity { slots: 2, cpu_millis: 0, memory_bytes: 0 };
        let mut story = Self { state: fresh_state(capacity), started: Vec::new(), inventory_has_a: None };
        story.feed(&Input::Opened { session: OLD });
        story.feed(&welcome(OLD));
        story.feed(&command(OLD, 4, 1, Body::Inventory));
        story.inventory_has_a = None;
        story
    }

    fn feed(&mut self, input: &Input) {
        for action in plan(&self.state, input, BootTime(0)) {
            self.state.apply(&action);
            match &action {
                Action::Create(order) => self.started.push(order.spec.sandbox_id.clone()),
                Action::Inventory { .. } => self.inventory_has_a = Some(self.state.table.get("a").is_some()),
                _ => {}
            }
        }
    }

    fn ends_well(&self, order: &[&Input]) {
        let started = |id: &str| self.started.iter().any(|started| started == id);
        let has_a = self.inventory_has_a.expect("the new leader is obeyed, and has its inventory");
        assert_eq!(started("a"), has_a, "the leader counts on its inventory: {order:#?}");
        assert!(started("b"), "what the new leader sold is started: {order:#?}");
    }
}

fn welcome(session: u64) -> Input {
    Input::Welcome { session, cluster_id: "blue".to_owned(), predecessor_id: String::new() }
}

fn command(session: u64, term: u64, sequence: u64, body: Body) -> Input {
    Input::Command(Command { session, term, sequence, incarnation: incarnation(1), body })
}

fn create(id: &str) -> Body {
    let (sandbox_id, cluster_id) = (id.to_owned(), "blue".to_owned());
    let spec = SandboxSpec { sandbox_id, cluster_id, generation: 1, ..SandboxSpec::default() };
    Body::Create(Order { spec: Arc::new(spec), expires_at: None, lease: None, heard: None })
}

/// Calls `each` with every order of the messages of two sessions in which each session's own come one after the other.
fn merges<'a>(
    left: &'a [Input],
    right: &'a [Input],
    so_far: &mut Vec<&'a Input>,
    each: &mut impl FnMut(&[&Input]),
) {
    if left.is_empty() && right.is_empty() {
        return each(so_far);
    }
    if let [next, rest @ ..] = left {
        so_far.push(next);
        merges(rest, right, so_far, each);
        so_far.pop();
    }
    if let [next, rest @ ..] = right {
        so_far.push(next);
        merges(left, rest, so_far, each);
        so_far.pop();
    }
}

#[test]
fn a_create_in_an_old_sessions_buffer_starts_nothing_that_the_inventory_lacked() {
    // The same leader by a new connection, and another leader.
    for term in [4, 5] {
        let old = [command(OLD, 4, 2, create("a")), Input::Closed { session: OLD }];
        let new = [
            Input::Opened { session: NEW },
            welcome(NEW),
            command(NEW, term, 1, Body::Inventory),
            command(NEW, term, 2, create("b")),
        ];
        let (mut orders, mut lacked) = (0, 0);
        merges(&old, &new, &mut Vec::new(), &mut |order| {
            let mut story = Story::new();
            for input in order {
                story.feed(input);
            }
            story.ends_well(order);
            orders += 1;
            lacked += u32::from(story.inventory_has_a == Some(false));
        });
        assert_eq!((orders, lacked), (15, 3), "in so many of all orders the create is late");
    }
}
