//! Violations: rules of the design that do not hold.

use std::fmt;

/// A violated rule, by its number in the design's list of invariants; 0 is the simulator's own: something that should
/// work was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's number.
    pub invariant: u8,
    /// The violation in words.
    pub what: String,
}

impl Violation {
    pub(crate) fn new(invariant: u8, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into() }
    }

    /// Parses a workload's sentence, which begins with the invariant's number.
    pub(crate) fn parse(sentence: &str) -> Self {
        let (number, what) = sentence.split_once(": ").unwrap_or(("0", sentence));
        match number.parse() {
            Ok(invariant) => Self::new(invariant, what),
            Err(_) => Self::new(0, sentence),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.invariant {
            0 => f.write_str(&self.what),
            number => write!(f, "invariant {number}: {}", self.what),
        }
    }
}

impl From<stead_core::shard::Violation> for Violation {
    fn from(violation: stead_core::shard::Violation) -> Self {
        Self::new(violation.invariant, format!("shard {}: {}", violation.shard, violation.what))
    }
}
