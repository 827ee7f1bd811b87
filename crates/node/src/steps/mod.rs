//! Steps of tasks: the queue of those that wait, and the parts that run them.

mod part;
mod queue;
#[cfg(test)]
mod tests;

pub use part::StepPart;
pub(crate) use queue::{Step, StepQueue};
