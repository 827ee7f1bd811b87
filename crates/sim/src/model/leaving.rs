//! The model's checks of all effects that leave a shard.

use super::{Model, hash_message};
use crate::violation::Violation;
use stead_core::calls::{Answer, Refusal};
use stead_core::ids::{Index, Seq, ShardId, TaskId};
use stead_core::record::{RecordKey, TaskRecord};
use stead_core::shard::Effect;

impl Model {
    /// Compares an effect that leaves a shard with the synced entries.
    pub(crate) fn check_effect(&self, shard: ShardId, effect: &Effect) -> Result<(), Violation> {
        let state = self.state(shard);
        let early = |what: String| {
            Err(Violation::new(5, format!("shard {shard}: {what} before its entry is committed")))
        };
        match effect {
            Effect::Deliver { to, messages, .. } => {
                let log = self.sent.get(&(shard, *to)).map_or(&[][..], Vec::as_slice);
                let mut last = None;
                for message in messages {
                    let seq = message.seq;
                    match log.get(seq.0.wrapping_sub(1) as usize) {
                        None => return early(format!("message {seq} to shard {to} leaves")),
                        Some(sent) if sent.message != hash_message(message) => {
                            let what =
                                format!("shard {shard}: message {seq} to shard {to} is not what was sent");
                            return Err(Violation::new(8, what));
                        }
                        Some(_) => {}
                    }
                    if last.is_some_and(|last: Seq| seq != last.next()) {
                        return Err(Violation::new(
                            8,
                            format!("shard {shard}: message {seq} to shard {to} leaves out of turn"),
                        ));
                    }
                    last = Some(seq);
                }
            }
            Effect::Ack { to, upto, colour } => {
                if *upto > state.received(*to) {
                    return early(format!("the acknowledgement of message {upto} of shard {to} leaves"));
                }
                if *colour > state.position().colour {
                    return early(format!("an acknowledgement to shard {to} names marker {colour}"));
                }
            }
            Effect::Answer(Answer { token, index, colour, result, .. }) => {
                if *index > state.position().index {
                    return early(format!("answer {token}, which saw entry {index}, leaves"));
                }
                if *colour > state.position().colour {
                    return early(format!("answer {token} names marker {colour}"));
                }
                // An answer that names no entry would pass whatever it includes.
                let saw_state = result.as_ref().err().is_none_or(Refusal::saw_state);
                if saw_state && *index == Index(0) {
                    return early(format!("answer {token}, which does not say what it saw, leaves"));
                }
            }
            Effect::Query(reading) => {
                if reading.index > state.position().index {
                    return early(format!("a query leaves, which saw entry {},", reading.index));
                }
            }
            Effect::RunStep { id, task, .. } => self.check_task(shard, *id, task)?,
            Effect::StepAllowed { .. } | Effect::WantsTurn(_) | Effect::EndsTurn(_) => {}
            Effect::MarkerCommitted(colour) => {
                if *colour > state.position().colour {
                    return early(format!("marker {colour} counts"));
                }
            }
            Effect::Active(epoch) => {
                if *epoch != state.position().epoch {
                    return early(format!("epoch {epoch} serves"));
                }
            }
            Effect::Append { .. } | Effect::Marked { .. } => {}
        }
        Ok(())
    }

    fn check_task(&self, shard: ShardId, id: TaskId, task: &TaskRecord) -> Result<(), Violation> {
        let known: Option<TaskRecord> = self.state(shard).record(&RecordKey::task(id));
        if known.as_ref() == Some(task) {
            return Ok(());
        }
        let what =
            format!("shard {shard}: step {} of task {id} runs, which is not what is committed", task.step);
        Err(Violation::new(5, what))
    }
}
