//! Fuzzing of everything that decodes what a disk holds or a peer sends: whatever the bytes are, there is a value or an error,
//! never a panic, and what is decoded can be encoded and decoded again.
//!
//! Each target is a test, named `fuzz_…`, beside what it decodes. A usual run gives each about a second; see docs/testing.md
//! for long ones, and for engines that are guided by coverage.

use std::cell::Cell;
use std::io::{self, Write as _};
use std::time::Duration;

/// Of a usual run, for each target. `BOLERO_RANDOM_TEST_TIME_MS` is another one.
pub(crate) const TIME: Duration = Duration::from_secs(1);
/// The time ends it first.
pub(crate) const ITERATIONS: usize = 1 << 40;
/// Of the input that a damage is drawn from, bytes.
pub(crate) const INPUT_BYTES: usize = 512;

/// A sample, bytes of it that are changed, where it is cut off, and bytes that take the place of all of it.
pub(crate) type Damage = (u8, Vec<(u16, u8)>, Option<u16>, Vec<u8>);

/// What the damage makes of one of the samples.
pub(crate) fn damaged(samples: &[Vec<u8>], (which, changes, cut, instead): &Damage) -> Vec<u8> {
    if which % 8 == 7 {
        return instead.clone();
    }
    let mut bytes = samples[usize::from(which / 8) % samples.len()].clone();
    if bytes.is_empty() {
        return instead.clone();
    }
    // The beginning of a long sample is the more interesting part of it.
    let window = bytes.len().min(if which % 2 == 0 { 96 } else { usize::from(u16::MAX) });
    for (at, value) in changes.iter().take(1 + usize::from(which % 4)) {
        bytes[usize::from(*at) % window] = *value;
    }
    if let Some(cut) = cut.filter(|_| which % 3 == 0) {
        bytes.truncate(usize::from(cut) % (bytes.len() + 1));
    }
    bytes
}

/// Counts what a target does, and says it at the end.
pub(crate) struct Count {
    name: &'static str,
    all: Cell<u64>,
    decoded: Cell<u64>,
}

impl Count {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, all: Cell::new(0), decoded: Cell::new(0) }
    }

    /// One execution, and whether the bytes were something.
    pub(crate) fn one(&self, decoded: bool) {
        self.all.set(self.all.get() + 1);
        self.decoded.set(self.decoded.get() + u64::from(decoded));
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        let (all, decoded) = (self.all.get(), self.decoded.get());
        let _ = writeln!(io::stdout(), "{}: {all} executions, {decoded} decoded", self.name);
    }
}

/// Runs a target on damaged samples: `$target` takes bytes, and says whether they were something.
macro_rules! fuzz {
    ($name:literal, $samples:expr, $target:expr) => {{
        let (samples, count, target) = ($samples, $crate::fuzz::Count::new($name), $target);
        let run = std::panic::AssertUnwindSafe((&samples, &count, &target));
        bolero::check!()
            .with_type::<$crate::fuzz::Damage>()
            .with_test_time($crate::fuzz::TIME)
            .with_iterations($crate::fuzz::ITERATIONS)
            .with_max_len($crate::fuzz::INPUT_BYTES)
            .for_each(move |damage: &$crate::fuzz::Damage| {
                let std::panic::AssertUnwindSafe((samples, count, target)) = &run;
                count.one(target(&$crate::fuzz::damaged(&samples[..], damage)));
            });
    }};
}
pub(crate) use fuzz;
