//! Whose recovery waits because too many were lost together: a table.

use super::world::*;
use crate::*;

/// How many agents there are, who is lost when, who is paused then, and why.
type Case = (usize, &'static [(char, i64)], &'static str, &'static str);

/// Agents that are lost, by letter, `seconds` after the start; the others of `all` stay. Who is paused then.
fn paused(all: usize, losses: &[(char, i64)]) -> String {
    let mut world = World::new();
    for letter in ('a'..='z').take(all) {
        world.must(Command::RegisterAgent(Box::new(agent(&letter.to_string(), 1))));
    }
    for (letter, seconds) in losses {
        world.now = START.plus(seconds * SECOND);
        lose(&mut world, *letter);
    }
    names(&world)
}

fn lose(world: &mut World, letter: char) {
    world.must(Command::LoseAgent { agent: agent_id(&letter.to_string()), incarnation: incarnation(1, 1) });
}

fn back(world: &mut World, letter: char) {
    world.must(Command::RegisterAgent(Box::new(agent(&letter.to_string(), 1))));
}

fn names(world: &World) -> String {
    world.state.recovery_paused().iter().map(AgentId::as_str).collect()
}

#[test]
fn whose_recovery_waits() {
    let cases: &[Case] = &[
        (3, &[], "", "nobody is lost"),
        (3, &[('a', 1)], "", "one of three"),
        (4, &[('a', 1), ('b', 1)], "", "a half is not more than half"),
        (5, &[('a', 1), ('b', 1), ('c', 1)], "abc", "most of five"),
        (1, &[('a', 1)], "a", "nobody is left to take what it ran"),
        (5, &[('a', 1), ('b', 31), ('c', 60)], "abc", "within a minute of one another"),
        (5, &[('a', 1), ('b', 2), ('c', 63)], "", "two, and another one for a reason of its own"),
        (
            9,
            &[('a', 1), ('b', 1), ('c', 1), ('d', 200), ('e', 400), ('f', 600)],
            "",
            "nobody was lost with many",
        ),
        (
            7,
            &[('a', 1), ('b', 1), ('c', 1), ('d', 1), ('e', 300)],
            "abcd",
            "one more changes nothing for them",
        ),
        (
            7,
            &[('a', 1), ('b', 100), ('c', 200), ('d', 300), ('e', 301)],
            "",
            "dead for long, and two of four now",
        ),
        (
            7,
            &[('a', 1), ('b', 100), ('c', 200), ('d', 300), ('e', 301), ('f', 302)],
            "def",
            "three of four now",
        ),
    ];
    for (all, losses, expected, why) in cases {
        assert_eq!(paused(*all, losses), *expected, "{why}");
    }
}

#[test]
fn it_ends_when_enough_are_back_or_an_operator_says_so_and_begins_anew_with_the_next_loss() {
    let mut world = World::new();
    for letter in 'a'..='e' {
        back(&mut world, letter);
    }
    for letter in ['a', 'b', 'c'] {
        lose(&mut world, letter);
    }
    assert_eq!(names(&world), "abc");
    world.must(Command::RecoverAgent(agent_id("b")));
    assert_eq!(names(&world), "ac", "who is resumed still says that the others were not lost alone");
    let revision = world.state.revision();
    world.must(Command::RecoverAgent(agent_id("b")));
    assert_eq!(world.state.revision(), revision, "said once");
    let mut back_again = world.clone();
    back(&mut back_again, 'a');
    assert_eq!(names(&back_again), "", "two of five");
    // What was said of one loss says nothing of the next.
    back(&mut world, 'b');
    lose(&mut world, 'b');
    assert_eq!(names(&world), "abc");
    let refused = world.give(Command::RecoverAgent(agent_id("d"))).unwrap_err();
    assert!(refused.to_string().contains("is not LOST"), "{refused}");
    assert!(matches!(world.give(Command::RecoverAgent(agent_id("z"))), Err(Rejection::AgentNotFound(_))));
}

#[test]
fn a_loss_is_remembered_until_the_agent_is_back() {
    let mut world = World::new();
    back(&mut world, 'a');
    let since = |world: &World| world.state.agent(&agent_id("a")).unwrap().lost_since;
    assert_eq!(since(&world), None);
    world.now = START.plus(5 * SECOND);
    lose(&mut world, 'a');
    assert_eq!(since(&world), Some(START.plus(5 * SECOND)));
    world.now = START.plus(9 * SECOND);
    world.must(Command::RecoverAgent(agent_id("a")));
    assert_eq!(since(&world), Some(START.plus(5 * SECOND)));
    back(&mut world, 'a');
    let agent = world.state.agent(&agent_id("a")).unwrap();
    assert_eq!((agent.lost_since, agent.recovery_resumed), (None, false));
}
