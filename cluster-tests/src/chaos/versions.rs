//! What something was, revision by revision, as far back as anybody may ask.

use std::collections::VecDeque;

/// Values and the revisions from which they held.
#[derive(Clone, Debug)]
pub struct Versions<T> {
    list: VecDeque<(u64, T)>,
    /// Before the oldest kept value there was another one.
    forgotten: bool,
}

/// What is known of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At<T> {
    /// It was this.
    Value(T),
    /// There was nothing yet.
    Nothing,
    /// It is too long ago.
    Forgotten,
}

impl<T> Default for Versions<T> {
    fn default() -> Self {
        Self { list: VecDeque::new(), forgotten: false }
    }
}

impl<T> Versions<T> {
    /// It is this, from a revision on that is not before the last one.
    pub fn push(&mut self, revision: u64, value: T) {
        if self.list.back().is_some_and(|(last, _)| *last == revision) {
            self.list.pop_back();
        }
        self.list.push_back((revision, value));
    }

    /// What it is now.
    pub fn last(&self) -> Option<&T> {
        self.list.back().map(|(_, value)| value)
    }

    /// What it was at a revision.
    pub fn at(&self, revision: u64) -> At<&T> {
        let after = self.list.partition_point(|(from, _)| *from <= revision);
        match after.checked_sub(1) {
            Some(index) => At::Value(&self.list[index].1),
            None if self.forgotten => At::Forgotten,
            None => At::Nothing,
        }
    }

    /// Everything that it was at some revision of a range, both ends included. None: that is not known any more.
    pub fn between(&self, from: u64, to: u64) -> Option<Vec<Option<&T>>> {
        let first = match self.at(from) {
            At::Value(value) => Some(value),
            At::Nothing => None,
            At::Forgotten => return None,
        };
        let later = self.list.iter().filter(|(revision, _)| *revision > from && *revision <= to);
        Some(std::iter::once(first).chain(later.map(|(_, value)| Some(value))).collect())
    }

    /// Nobody asks for what was before a revision any more.
    pub fn forget_before(&mut self, revision: u64) {
        while self.list.get(1).is_some_and(|(from, _)| *from <= revision) {
            self.list.pop_front();
            self.forgotten = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_revision_has_its_value_as_far_back_as_is_kept() {
        let mut versions = Versions::default();
        versions.push(3, 'a');
        versions.push(3, 'b');
        versions.push(7, 'c');
        assert_eq!((versions.at(2), versions.at(3)), (At::Nothing, At::Value(&'b')));
        assert_eq!((versions.at(6), versions.at(9)), (At::Value(&'b'), At::Value(&'c')));
        assert_eq!(versions.between(1, 7).unwrap(), [None, Some(&'b'), Some(&'c')]);
        assert_eq!(versions.between(4, 6).unwrap(), [Some(&'b')]);
        versions.forget_before(7);
        assert_eq!((versions.at(6), versions.at(7)), (At::Forgotten, At::Value(&'c')));
        assert_eq!(versions.between(6, 8), None);
    }
}
