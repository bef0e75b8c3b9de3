//! Real processes, faults, an oracle, one file per invariant.
