use std::sync::Arc;

use proptest::prelude::*;
use sandkeeper_statemachine::{
    Actor, Entry, Event, EventKind, Header, SandboxId, SandboxName, Subject, Timestamp,
};

use super::*;

fn id(number: u8) -> SandboxId {
    SandboxId::Fast([number; 16])
}

/// An event of sandbox `number`, one of whose three names it has.
fn event(number: u8) -> Event {
    let name = SandboxName {
        namespace: "default".parse().unwrap(),
        name: format!("n{}", number % 3).parse().unwrap(),
    };
    let subject = Subject { sandbox: Some((id(number), name)), agent: Some("a1".parse().unwrap()) };
    let header = Header { actor: Actor::Leader, reason: String::new(), request: None, subject, previous: 0 };
    Event { header, kind: EventKind::SandboxTerminating }
}

/// Entries with these events, at indexes with holes between.
fn entries(numbers: &[Vec<u8>]) -> Vec<AppliedEntry> {
    let (mut revision, mut applied) = (0, Vec::new());
    for (at, numbers) in (0..).zip(numbers) {
        let events = numbers.iter().map(|number| event(*number)).collect();
        let entry = Arc::new(Entry::new(revision, 1, Timestamp(1), events));
        applied.push(AppliedEntry { first_revision: revision + 1, term: 1, index: at * 7 + 1000, entry });
        revision += numbers.len() as u64;
    }
    applied
}

/// Where the events of a key are, newest first, by looking at all of them.
fn expected(applied: &[AppliedEntry], key: Key, upto: Revision) -> Vec<Place> {
    let mut places = Vec::new();
    for entry in applied {
        for (revision, event) in (entry.first_revision..=upto).zip(&entry.entry.events) {
            if Key::of_event(event).any(|other| other == key) {
                places.push(Place { revision, index: entry.index });
            }
        }
    }
    places.reverse();
    places
}

fn keys() -> Vec<Key> {
    let default = "default".parse().unwrap();
    let mut keys: Vec<_> = (0..8).map(|number| Key::sandbox(&id(number))).collect();
    keys.extend((0..3).map(|number| Key::name(&default, &format!("n{number}").parse().unwrap())));
    keys.extend([Key::agent(&"a1".parse().unwrap()), Key::namespace(&default)]);
    keys
}

fn check(index: &SubjectIndex, applied: &[AppliedEntry], upto: Revision) {
    for key in keys() {
        let found = index.lookup(key, upto).unwrap().unwrap();
        assert_eq!((found.places, found.from), (expected(applied, key, upto), 1));
    }
}

#[test]
fn two_of_one_name_in_two_namespaces_are_two_subjects() {
    let label = |text: &str| text.parse().unwrap();
    assert_ne!(Key::name(&label("a"), &label("bc")), Key::name(&label("ab"), &label("c")));
    assert_ne!(Key::namespace(&label("a")), Key::agent(&"a".parse().unwrap()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_lookup_finds_what_looking_at_everything_finds(
        numbers in prop::collection::vec(prop::collection::vec(0_u8..8, 1..6), 2..120),
        closed in any::<prop::sample::Index>(),
        upto in any::<prop::sample::Index>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let index = SubjectIndex::open(folder.path()).unwrap();
        let applied = entries(&numbers);
        let last = applied.last().unwrap().last_revision();
        let upto = 1 + upto.index(last as usize) as u64;
        for (at, entry) in applied.iter().enumerate() {
            index.append(std::slice::from_ref(entry));
            if at == closed.index(applied.len()) || at == closed.index(applied.len()) / 2 {
                let open = index.read(|sections| sections.open.clone()).unwrap();
                index.close(&open).unwrap();
            }
        }
        check(&index, &applied, last);
        check(&index, &applied, upto);
        prop_assert_eq!(index.gap(1, last), None);
        prop_assert_eq!(index.gap(1, last + 3), Some((last + 1, last + 3)));
        // Another process finds what is on the disk.
        if let Some(open) = index.read(|sections| sections.open.clone()) {
            index.close(&open).unwrap();
        }
        let again = SubjectIndex::open(folder.path()).unwrap();
        check(&again, &applied, upto);
        again.prune(last + 1).unwrap();
        prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        prop_assert_eq!(again.lookup(keys()[0], last).unwrap(), None);
    }
}

/// An index of three sections of ten events, and the entries.
fn three_sections(folder: &Path) -> (SubjectIndex, Vec<AppliedEntry>) {
    let index = SubjectIndex::open(folder).unwrap();
    let applied = entries(&(0..30_u8).map(|number| vec![number % 8]).collect::<Vec<_>>());
    for part in applied.chunks(10) {
        index.append(part);
        let open = index.read(|sections| sections.open.clone()).unwrap();
        index.close(&open).unwrap();
    }
    (index, applied)
}

#[test]
fn whatever_is_damaged_is_found_removed_and_missing_then() {
    let folder = tempfile::tempdir().unwrap();
    let (index, applied) = three_sections(folder.path());
    let middle = folder.path().join("section-00000000000000000011");
    let sound = fs::read(&middle).unwrap();
    drop(index);
    for at in 0..sound.len() {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        fs::write(&middle, bytes).unwrap();
        let index = SubjectIndex::open(folder.path()).unwrap();
        let mut noticed = false;
        for key in keys() {
            match index.lookup(key, 30).unwrap().unwrap() {
                found if found.from == 1 => {
                    assert_eq!(found.places, expected(&applied, key, 30), "byte {at}")
                }
                found => {
                    noticed = true;
                    assert_eq!(found.from, 21);
                }
            }
        }
        assert!(noticed, "byte {at}");
        assert_eq!(index.gap(1, 30), Some((11, 20)));
        assert_eq!(index.covered_before(20), 10);
        assert!(!middle.exists());
    }
    // A file that ends early, in every place.
    for length in 0..sound.len() {
        fs::write(&middle, &sound[..length]).unwrap();
        let index = SubjectIndex::open(folder.path()).unwrap();
        let complete = keys().into_iter().all(|key| index.lookup(key, 30).unwrap().unwrap().from == 1);
        assert!(!complete, "{length} bytes");
    }
}

#[test]
fn what_is_older_than_the_history_is_removed_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (index, _) = three_sections(folder.path());
    index.prune(15).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    assert_eq!(index.gap(15, 30), None);
    assert_eq!(index.gap(5, 30), Some((5, 10)));
}

/// Written by hand, as docs/formats.md says.
#[test]
fn a_section_of_format_version_1_can_be_read() {
    let mut file = b"SKHX\x01\0\0\0".to_vec();
    for number in [1_u64, 300, 1000] {
        file.extend_from_slice(&number.to_le_bytes());
    }
    file.extend_from_slice(&crc32fast::hash(&file).to_le_bytes());
    // One bucket, and where it ends.
    let key = 0x0102_0304_0506_0708_u64;
    let body = [&key.to_le_bytes()[..], &[2, 0, 0, 0xab, 0x02, 5]].concat();
    let (begin, end) = (44_u32, 44 + 4 + body.len() as u32);
    file.extend_from_slice(&[begin.to_le_bytes(), end.to_le_bytes()].concat());
    file.extend_from_slice(&crc32fast::hash(&[&[0; 4][..], &body].concat()).to_le_bytes());
    file.extend_from_slice(&body);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("section-00000000000000000001");
    fs::write(&path, &file).unwrap();
    assert_eq!(check_section(&path), Ok(2));
    let section = Section::open(&path).ok().unwrap();
    let places = section.places(Key(key), 300).ok().unwrap();
    let expected = [(300, 1005), (1, 1000)].map(|(revision, index)| Place { revision, index });
    assert_eq!(places, expected);
    file[4] = 2;
    fs::write(&path, &file).unwrap();
    check_section(&path).unwrap_err();
}
