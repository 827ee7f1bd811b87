//! Runs the checks that services declare over complete checkpoints. They are user code, and read a whole checkpoint: so
//! they run on a thread of their own, apart from taking checkpoints, one checkpoint at a time and with a time limit.
//!
//! Of the interval's checkpoints the newest one is checked; older ones are skipped if the thread cannot keep up.

mod desk;
mod marks;
mod part;

pub(crate) use desk::{CheckDesk, CheckJob};
pub use marks::note_unended;
pub(crate) use marks::{CheckLimits, CheckMarks, LeftMarks};
pub use part::CheckPart;
