//! The part that runs steps of tasks.

use crate::bell::Bell;
use crate::env::{Env, Program, StepCall, Watch};
use crate::part::{Part, Turned};
use crate::shared::Shared;
use crate::steps::queue::{Ending, Next, Step};
use crate::watchdog::Probe;
use std::convert::Infallible;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use stead_core::ids::{Micros, Time};
use stead_core::shard::Input;

/// The interval at which a part looks whether the node has memory for the outcome of a step, in milliseconds.
const CROWDED_LOOK: Micros = Micros::from_millis(5);

/// A part that runs steps, one at a time.
pub struct StepPart {
    number: usize,
    probe: Arc<Probe>,
    at: At,
}

/// The progress of a part with its step.
enum At {
    Idle,
    /// The step's shard was asked whether it may run.
    Asked(Step),
    /// The next turn runs it.
    Begun(Step),
}

impl StepPart {
    /// Creates a part. `number` counts from 0, and is below the number of the queue's parts.
    pub(crate) fn new(number: usize, probe: Arc<Probe>) -> Self {
        Self { number, probe, at: At::Idle }
    }

    /// Whether it has taken a step, which the next turn runs.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        matches!(self.at, At::Begun(_))
    }

    fn run<E: Env>(&self, hub: &Shared<E>, step: Step) {
        let Step { shard, id, run, task, .. } = step;
        let call = StepCall {
            name: &task.name,
            state: &task.state,
            id,
            step: task.step.0,
            owner: &task.process,
            retries: task.retry.as_ref().map_or(0, |retry| retry.count),
            stopping: &hub.steps.stopping,
        };
        let service = hub.topology.service_of(shard).expect("each shard is of a service");
        hub.watch.begins(shard, id, &task);
        self.probe.enter_step(id, service, &task.process);
        let outcome = hub.program.step(&call);
        self.probe.leave();
        hub.counters.services[usize::from(service.0)].task_steps.add(1);
        hub.memory.change([0, outcome.bytes() as i64, 0]);
        hub.push(shard, Input::TaskStep { id, step: task.step, run, outcome });
    }
}

/// A turn takes a step, asks about it, or runs it.
impl<E: Env> Part<Shared<E>> for StepPart {
    type Error = Infallible;

    fn bell<'h>(&self, hub: &'h Shared<E>) -> &'h Bell {
        hub.steps.bell(self.number)
    }

    fn turn(&mut self, hub: &Shared<E>, now: Time) -> Result<Turned, Infallible> {
        let queue = &hub.steps;
        match mem::replace(&mut self.at, At::Idle) {
            At::Idle => {
                let step = match queue.desk().next(self.number, hub.memory.is_over()) {
                    Next::Ended => return Ok(Turned::Ended),
                    Next::Sleep => return Ok(Turned::Until(None)),
                    Next::Crowded => return Ok(Turned::Until(Some(now.plus(CROWDED_LOOK)))),
                    Next::Take(step) => step,
                };
                if !step.asks {
                    self.at = At::Begun(step);
                    return Ok(Turned::Again);
                }
                let Step { shard, id, run, .. } = step;
                queue.desk().ask(self.number, &step);
                self.at = At::Asked(step);
                hub.push(shard, Input::StepBegins { id, run });
                Ok(Turned::Until(None))
            }
            At::Asked(step) => {
                let answer = queue.desk().take_answer(&step);
                match answer {
                    Some(true) => self.at = At::Begun(step),
                    Some(false) => queue.end(self.number),
                    None => {
                        self.at = At::Asked(step);
                        return Ok(Turned::Until(None));
                    }
                }
                Ok(Turned::Again)
            }
            At::Begun(step) => {
                let _ending = Ending(queue, self.number);
                if !queue.stopping.load(Ordering::SeqCst) {
                    self.run(hub, step);
                }
                Ok(Turned::Again)
            }
        }
    }
}
