//! Collects what is wrong with a request, so that its caller learns everything at once.

use std::fmt::Display;
use std::str::FromStr;

use prost::Message;
use sandkeeper_statemachine::limits::Violation;
use sandkeeper_statemachine::{Label, Rejection};

use super::MAX_REQUEST_BYTES;

/// What is wrong with a request, so far.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    violations: Vec<Violation>,
}

impl Fields {
    /// Notes that a field breaks a rule.
    pub(crate) fn refuse(&mut self, field: &str, description: impl Into<String>) {
        self.violations.push(Violation::new(field, description));
    }

    /// Notes that a field breaks a rule, unless the rule holds.
    pub(crate) fn require(&mut self, holds: bool, field: &str, description: impl Into<String>) {
        if !holds {
            self.refuse(field, description);
        }
    }

    /// Notes what a check of the core found.
    pub(crate) fn check(&mut self, checked: Result<(), Vec<Violation>>) {
        for violation in checked.err().into_iter().flatten() {
            if !self.violations.contains(&violation) {
                self.violations.push(violation);
            }
        }
    }

    /// Notes what was noted of a part of the request, whose fields are named under `path`.
    pub(crate) fn take_in(&mut self, path: &str, part: Self) {
        for found in part.violations {
            self.refuse(&format!("{path}{}", found.field), found.description);
        }
    }

    /// Notes that the whole request is too large.
    pub(crate) fn size(&mut self, request: &impl Message) {
        let bytes = request.encoded_len();
        self.require(
            bytes <= MAX_REQUEST_BYTES,
            "request",
            format!("at most {MAX_REQUEST_BYTES} bytes in all, has {bytes}"),
        );
    }

    /// Parses a field.
    pub(crate) fn parsed<T: FromStr<Err: Display>>(&mut self, field: &str, text: &str) -> Option<T> {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.refuse(field, error.to_string());
                None
            }
        }
    }

    /// Parses a name that has to be there. A bad one is replaced, so that the rest of the request can be looked at.
    pub(crate) fn label(&mut self, field: &str, text: &str) -> Label {
        self.parsed(field, text).unwrap_or_else(Label::default_name)
    }

    /// Parses a namespace or a pool: "default" if it is empty.
    pub(crate) fn label_or_default(&mut self, field: &str, text: &str) -> Label {
        if text.is_empty() { Label::default_name() } else { self.label(field, text) }
    }

    /// Reads a value of an enum; `None` if this version does not know it.
    pub(crate) fn enum_value<T: TryFrom<i32>>(&mut self, field: &str, value: i32) -> Option<T> {
        let known = T::try_from(value).ok();
        self.require(known.is_some(), field, super::unknown_value(value));
        known
    }

    /// Ends the collection.
    ///
    /// # Errors
    /// [`Rejection::Invalid`] with all that was noted.
    pub(crate) fn done(self) -> Result<(), Rejection> {
        if self.violations.is_empty() { Ok(()) } else { Err(Rejection::Invalid(self.violations)) }
    }
}
