//! Any sequence of operations, against a `Vec`.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Act {
    Append {
        sizes: Vec<usize>,
        wait: bool,
    },
    /// Keeps this share of the entries that are not purged, in 1/256.
    Truncate(u8),
    /// Purges this share of them, in 1/200: more than 200 goes beyond the end.
    Purge(u8),
    /// Keeps no history before this share of what is purged, in 1/256.
    Trim(u8),
    Vote,
    Reopen,
    Read {
        from: u8,
        length: u8,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let size = prop_oneof![8 => 0..600_usize, 1 => 23_900..24_100_usize, 1 => 24_000..80_000_usize];
    prop_oneof![
        8 => (prop::collection::vec(size, 1..8), any::<bool>())
            .prop_map(|(sizes, wait)| Act::Append { sizes, wait }),
        2 => any::<u8>().prop_map(Act::Truncate),
        2 => any::<u8>().prop_map(Act::Purge),
        1 => any::<u8>().prop_map(Act::Trim),
        1 => Just(Act::Vote),
        2 => Just(Act::Reopen),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(from, length)| Act::Read { from, length }),
    ]
}

#[derive(Default)]
struct Model {
    entries: Vec<LogEntry>,
    /// What is purged, and kept.
    history: Vec<LogEntry>,
    purged: Option<LogId>,
    term: u64,
    voted: Option<u64>,
}

impl Model {
    fn next(&self) -> u64 {
        let last = self.entries.last().map(|entry| entry.log_id);
        last.or(self.purged).map_or(0, |id| id.index + 1)
    }
}

async fn check(store: &mut LogStore, model: &Model) {
    let state = store.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, model.purged);
    assert_eq!(state.last_log_id, model.entries.last().map(|entry| entry.log_id).or(model.purged));
    assert!(all(store).await == model.entries, "the same entries");
    let kept = history(store).await;
    assert!(kept == [&model.history[..], &model.entries[..]].concat(), "the same history");
    assert_eq!(store.reader().read_vote().await.unwrap(), model.voted.map(vote));
}

async fn perform(store: &mut LogStore, model: &mut Model, act: Act, dir: &Path) {
    match act {
        Act::Append { sizes, wait } => {
            let next = model.next();
            let entries: Vec<_> = (next..).zip(sizes).map(|(i, size)| entry(model.term, i, size)).collect();
            model.entries.extend(entries.clone());
            let told = start_append(store, entries).await;
            if wait {
                told.await.unwrap();
            }
        }
        Act::Truncate(share) => {
            let keep = model.entries.len() * usize::from(share) / 256;
            model.entries.truncate(keep);
            let after = model.entries.last().map(|entry| entry.log_id).or(model.purged);
            store.truncate_after(after).await.unwrap();
            model.term += 1;
        }
        Act::Purge(share) => {
            let count = model.entries.len() * usize::from(share) / 200;
            let upto = match model.entries.get(count) {
                Some(entry) => entry.log_id,
                None => log_id(model.term, model.next() + count as u64),
            };
            let beyond = upto.index >= model.next();
            let kept = model.entries.partition_point(|entry| entry.log_id.index <= upto.index);
            model.history.extend(model.entries.drain(..kept));
            if beyond {
                model.history.clear();
            }
            model.purged = Some(upto);
            store.purge(upto).await.unwrap();
        }
        Act::Trim(share) => {
            model.history.drain(..model.history.len() * usize::from(share) / 256);
            let next = model.purged.map_or(0, |purged| purged.index + 1);
            let index = model.history.first().map_or(next, |entry| entry.log_id.index);
            store.trim_history(start(index)).await.unwrap();
        }
        Act::Vote => {
            model.voted = Some(model.term);
            store.save_vote(&vote(model.term)).await.unwrap();
        }
        Act::Reopen => {
            store.shutdown().await.unwrap();
            *store = open(dir);
            check(store, model).await;
        }
        Act::Read { from, length } => {
            let first = model.entries.first().map_or(0, |entry| entry.log_id.index);
            let from = (first + u64::from(from) / 4).saturating_sub(4);
            let range = from..from + u64::from(length) / 4;
            let expected: Vec<_> =
                model.entries.iter().filter(|e| range.contains(&e.log_id.index)).cloned().collect();
            let read = store.reader().try_get_log_entries(range).await.unwrap();
            assert!(read == expected, "the same entries");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_what_a_vec_would_be(acts in prop::collection::vec(act(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = open(dir.path());
            let mut model = Model { term: 1, ..Model::default() };
            for act in acts {
                perform(&mut store, &mut model, act, dir.path()).await;
            }
            check(&mut store, &model).await;
            perform(&mut store, &mut model, Act::Reopen, dir.path()).await;
        });
    }
}
