//! Sandboxes that write down themselves when they lived, by the kernel's clock since boot, which no fake time touches.

use std::collections::BTreeMap;

use nix::time::{ClockId, clock_gettime};

/// For `sh -c`: one line for each life and moment: a name that this life drew, at the place where it lived, and hundredths
/// of a second since boot. `DIARY` names the file.
pub const SCRIPT: &str = "trap '' TERM; read life < /proc/sys/kernel/random/uuid; \
                          while read up idle < /proc/uptime; do echo $life@$PWD $up >> \"$DIARY\"; sleep 0.05; done";

/// One life of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// The name that it drew.
    pub name: String,
    /// Its working directory.
    pub place: String,
    /// Its first moment, in hundredths of a second since boot.
    pub first: u64,
    /// Its last moment.
    pub last: u64,
}

/// The moment, as diaries have it.
pub fn now() -> u64 {
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has this clock");
    let (seconds, nanos) = (since_boot.tv_sec().cast_unsigned(), since_boot.tv_nsec().cast_unsigned());
    seconds * 100 + nanos / 10_000_000
}

/// All lives that a diary tells of, in the order in which they began.
pub fn lives(diary: &str) -> Vec<Life> {
    let mut lives = BTreeMap::<&str, (u64, u64)>::new();
    for line in diary.lines() {
        let Some((life, moment)) = line.split_once(' ') else { continue };
        let Ok(moment) = moment.replace('.', "").parse::<u64>() else { continue };
        let (first, last) = lives.entry(life).or_insert((moment, moment));
        (*first, *last) = ((*first).min(moment), (*last).max(moment));
    }
    let life = |(life, (first, last)): (&str, (u64, u64))| {
        let (name, place) = life.split_once('@').unwrap_or((life, ""));
        Life { name: name.to_owned(), place: place.to_owned(), first, last }
    };
    let mut lives: Vec<_> = lives.into_iter().map(life).collect();
    lives.sort_by_key(|life| (life.first, life.last));
    lives
}

/// When one life went on while the next had begun: until when the earlier lived, and since when the later.
pub fn overlaps(lives: &[Life]) -> Vec<(u64, u64)> {
    let mut overlaps = Vec::new();
    let mut latest = 0;
    for life in lives {
        if life.first <= latest {
            overlaps.push((latest, life.first));
        }
        latest = latest.max(life.last);
    }
    overlaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_that_overlap_are_found() {
        let diary = "a@/x 1.00\na@/x 1.02\nb@/y 3.50\nb@/y 3.60\na@/x 1.04\ntorn";
        let found = lives(diary);
        let times: Vec<_> = found.iter().map(|life| (life.first, life.last)).collect();
        assert_eq!(times, [(100, 104), (350, 360)]);
        assert_eq!((found[1].name.as_str(), found[1].place.as_str()), ("b", "/y"));
        assert!(overlaps(&found).is_empty());
        let life = |first, last| Life { name: String::new(), place: String::new(), first, last };
        let found = overlaps(&[life(100, 500), life(200, 250), life(400, 600), life(700, 800)]);
        assert_eq!(found, [(500, 200), (500, 400)]);
    }
}
