//! See `crate::fuzz`.

use std::fs;

use super::*;
use crate::api::testing::World;
use crate::fuzz::fuzz;

#[test]
fn fuzz_index_section() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::with_agent();
    for round in 0..60 {
        world.create_strong(&format!("web-{round}"));
    }
    SubjectIndex::open(dir.path()).unwrap().fill_for_test(&world.applied, u64::MAX);
    let path = dir.path().join("section-00000000000000000001");
    let sample = fs::read(&path).unwrap();
    let keys: Vec<Key> =
        world.applied.iter().flat_map(|one| one.entry.events.iter().flat_map(Key::of_event)).collect();
    fuzz!("index section", [sample], |bytes: &[u8]| {
        let mut fixed = bytes.to_vec();
        if fixed.len() > 36 {
            let crc = crc32fast::hash(&fixed[..32]);
            fixed[32..36].copy_from_slice(&crc.to_le_bytes());
        }
        let mut sound = false;
        for bytes in [bytes, &fixed[..]] {
            fs::write(&path, bytes).unwrap();
            if let Ok(section) = Section::open(&path) {
                keys.iter().step_by(7).for_each(|key| drop(section.places(*key, 50)));
            }
            sound |= check_section(&path).is_ok();
        }
        sound
    });
}
