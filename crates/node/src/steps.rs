//! Steps of tasks: those that wait, and the parts that run them.

use crate::bell::Bell;
use crate::env::{Env, Program, StepCall, Watch};
use crate::part::{Part, Turned};
use crate::shared::Shared;
use crate::watchdog::Probe;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Instant;
use stead_core::ids::{ShardId, TaskId, Time};
use stead_core::record::TaskRecord;
use stead_core::shard::Input;

/// The interval at which a part looks whether the node has memory for the outcome of a step, in milliseconds.
const CROWDED_LOOK_MS: u64 = 5;

/// A step of a task that is due.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) shard: ShardId,
    pub(crate) id: TaskId,
    pub(crate) run: u32,
    pub(crate) task: TaskRecord,
    /// A death of the process may have met it: its shard logs an attempt before it runs.
    pub(crate) asks: bool,
    /// It is tried in its shard's turn, which others wait for.
    pub(crate) alone: bool,
}

impl Step {
    fn key(&self) -> (ShardId, TaskId, u32) {
        (self.shard, self.id, self.run)
    }

    /// For a person: which task of which process.
    fn name(&self) -> String {
        let TaskRecord { step, name, process, .. } = &self.task;
        format!("step {step} of task {name} of {process}")
    }
}

/// The next thing for a part to do.
#[derive(Debug)]
enum Next {
    Take(Step),
    /// Nothing waits: its bell is rung when something does.
    Sleep,
    /// Something waits that the node has no memory for.
    Crowded,
    Ended,
}

/// Which step waits, is asked about, or runs, and which part has it. Parts are known by their numbers.
#[derive(Debug, Default)]
struct StepDesk {
    waiting: VecDeque<Step>,
    /// Parts that look for a step when they are rung.
    idle: BTreeSet<usize>,
    /// Steps whose shard was asked whether they may run: the part that has it, and the answer.
    asked: BTreeMap<(ShardId, TaskId, u32), (usize, Option<bool>)>,
    running: BTreeMap<usize, Running>,
    is_stopped: bool,
}

/// A step that a part has taken.
#[derive(Debug)]
struct Running {
    thread: ThreadId,
    name: String,
}

impl StepDesk {
    /// Takes on a step, to run after those that wait; before them if it is tried alone, so that its turn is soon over.
    /// Returns the part to ring.
    fn push(&mut self, step: Step) -> Option<usize> {
        if self.is_stopped {
            return None;
        }
        if step.alone {
            self.waiting.push_front(step);
        } else {
            self.waiting.push_back(step);
        }
        self.idle.pop_first()
    }

    /// The next step for a part, which has none. Without memory for its outcome only one that is tried alone begins, for
    /// others wait for its turn.
    fn next(&mut self, part: usize, is_crowded: bool) -> Next {
        self.idle.remove(&part);
        if self.is_stopped {
            return Next::Ended;
        }
        if let Some(step) = self.waiting.pop_front_if(|step| step.alone || !is_crowded) {
            self.running.insert(part, Running { thread: thread::current().id(), name: step.name() });
            return Next::Take(step);
        }
        if !self.waiting.is_empty() {
            // It looks again by its own clock: the ring of the next step is for a part that sleeps.
            return Next::Crowded;
        }
        self.idle.insert(part);
        Next::Sleep
    }

    /// A part is about to ask the shard of its step.
    fn ask(&mut self, part: usize, step: &Step) {
        self.asked.insert(step.key(), (part, None));
    }

    /// The shard of a step has answered. Returns the part to ring; none if the step is not waited for any more.
    fn answer(&mut self, key: (ShardId, TaskId, u32), allowed: bool) -> Option<usize> {
        let (part, answer) = self.asked.get_mut(&key)?;
        *answer = Some(allowed);
        Some(*part)
    }

    /// Takes the answer to a step that was asked about; no step may begin once the node stops.
    fn take_answer(&mut self, step: &Step) -> Option<bool> {
        let answer = if self.is_stopped { Some(false) } else { self.asked.get(&step.key())?.1 };
        if answer.is_some() {
            self.asked.remove(&step.key());
        }
        answer
    }

    /// From now on no step begins. Steps that wait stay in the log.
    fn stop(&mut self) {
        self.is_stopped = true;
        self.waiting.clear();
    }
}

/// The desk of the steps, and what else the parts that run them share.
pub(crate) struct StepQueue {
    desk: Mutex<StepDesk>,
    /// By part.
    bells: Vec<Bell>,
    /// A step has ended.
    ended: Condvar,
    pub(crate) stopping: AtomicBool,
}

impl StepQueue {
    /// A queue without steps, for so many parts.
    pub(crate) fn new(parts: usize) -> Self {
        Self {
            desk: Mutex::default(),
            bells: (0..parts).map(|_| Bell::default()).collect(),
            ended: Condvar::new(),
            stopping: AtomicBool::new(false),
        }
    }

    fn desk(&self) -> MutexGuard<'_, StepDesk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, part: Option<usize>) {
        if let Some(part) = part {
            self.bells[part].ring();
        }
    }

    /// Takes on a step.
    pub(crate) fn push(&self, step: Step) {
        let part = self.desk().push(step);
        self.ring(part);
    }

    /// A shard answers a step that asked.
    pub(crate) fn answer(&self, shard: ShardId, id: TaskId, run: u32, allowed: bool) {
        let part = self.desk().answer((shard, id, run), allowed);
        self.ring(part);
    }

    /// From now on no step begins. Steps that wait stay in the log.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.desk().stop();
        self.bells.iter().for_each(Bell::ring);
    }

    /// Waits for the steps that run, but for one on this thread. Returns the names of those that still run at the deadline;
    /// these are waited for no more.
    #[expect(clippy::disallowed_methods, reason = "a shutdown waits for threads")]
    pub(crate) fn await_end(&self, deadline: Instant) -> Vec<String> {
        let here = thread::current().id();
        let mut desk = self.desk();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let others = desk.running.values().filter(|running| running.thread != here);
            let names: Vec<String> = others.map(|running| running.name.clone()).collect();
            if names.is_empty() || left.is_zero() {
                desk.running.retain(|_, running| running.thread == here);
                return names;
            }
            desk = self.ended.wait_timeout(desk, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn end(&self, part: usize) {
        self.desk().running.remove(&part);
        self.ended.notify_all();
    }
}

/// Takes a step off the list of those that run, also if its code panics.
struct Ending<'a>(&'a StepQueue, usize);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end(self.1);
    }
}

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
    /// `number` counts from 0 and is below the number of the queue's parts.
    pub(crate) fn new(number: usize, probe: Arc<Probe>) -> Self {
        Self { number, probe, at: At::Idle }
    }

    fn run<E: Env>(&self, hub: &Shared<E>, step: Step) {
        let Step { shard, id, run, task, .. } = step;
        let call = StepCall {
            name: &task.name,
            state: &task.state,
            id,
            step: task.step,
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

/// One turn takes a step, asks about it, or runs it.
impl<E: Env> Part<Shared<E>> for StepPart {
    type Error = Infallible;

    fn bell<'h>(&self, hub: &'h Shared<E>) -> &'h Bell {
        &hub.steps.bells[self.number]
    }

    fn turn(&mut self, hub: &Shared<E>, now: Time) -> Result<Turned, Infallible> {
        let queue = &hub.steps;
        match mem::replace(&mut self.at, At::Idle) {
            At::Idle => {
                let step = match queue.desk().next(self.number, hub.memory.is_over()) {
                    Next::Ended => return Ok(Turned::Ended),
                    Next::Sleep => return Ok(Turned::Until(None)),
                    Next::Crowded => return Ok(Turned::Until(Some(now.plus_millis(CROWDED_LOOK_MS)))),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::Command;
    use crate::shared::tests::shared_with;
    use std::time::Duration;
    use stead_core::ids::{Blob, Key};
    use stead_core::shard::StepOutcome;

    fn step(id: u64, asks: bool, alone: bool) -> Step {
        let task = TaskRecord {
            process: Key::none(),
            name: "task".into(),
            step: 0,
            state: Blob::empty(),
            progress: 0,
            retry: None,
        };
        Step { shard: ShardId(0), id: TaskId(id), run: 1, task, asks, alone }
    }

    /// The task of the step that a part takes.
    fn take(desk: &mut StepDesk, part: usize, is_crowded: bool) -> Option<u64> {
        match desk.next(part, is_crowded) {
            Next::Take(step) => Some(step.id.0),
            _ => None,
        }
    }

    #[test]
    fn without_memory_only_a_step_that_is_tried_alone_begins_however_many_wait() {
        let mut desk = StepDesk::default();
        for (id, alone) in [(1, false), (2, false), (3, true)] {
            desk.push(step(id, true, alone));
        }
        assert_eq!(take(&mut desk, 0, true), Some(3));
        assert!(matches!(desk.next(1, true), Next::Crowded));
        assert_eq!(take(&mut desk, 1, false), Some(1));
        assert_eq!(take(&mut desk, 2, false), Some(2));
        assert!(matches!(desk.next(3, false), Next::Sleep));
    }

    #[test]
    fn a_step_that_comes_wakes_one_part_that_has_none() {
        let mut desk = StepDesk::default();
        assert_eq!(desk.push(step(1, false, false)), None, "no part has looked yet");
        assert_eq!(take(&mut desk, 0, false), Some(1));
        assert!(matches!(desk.next(1, false), Next::Sleep));
        assert!(matches!(desk.next(2, false), Next::Sleep));
        assert_eq!(desk.push(step(2, false, false)), Some(1));
        assert_eq!(desk.push(step(3, false, false)), Some(2));
        assert_eq!(desk.push(step(4, false, false)), None, "all have something to do");
        assert_eq!([1, 2, 0].map(|part| take(&mut desk, part, false)), [Some(2), Some(3), Some(4)]);
    }

    #[test]
    fn a_part_that_waits_for_memory_takes_no_ring_from_one_that_sleeps() {
        let mut desk = StepDesk::default();
        assert!(matches!(desk.next(0, false), Next::Sleep));
        assert!(matches!(desk.next(1, false), Next::Sleep));
        assert_eq!(desk.push(step(1, false, false)), Some(0));
        assert!(matches!(desk.next(0, true), Next::Crowded));
        assert_eq!(desk.push(step(2, false, false)), Some(1));
    }

    #[test]
    fn an_answer_goes_to_the_part_that_asked_and_to_no_other_run() {
        let mut desk = StepDesk::default();
        desk.push(step(7, true, false));
        let Next::Take(asked) = desk.next(3, false) else { panic!("a step waits") };
        desk.ask(3, &asked);
        assert_eq!(desk.take_answer(&asked), None);
        assert_eq!(desk.answer((ShardId(0), TaskId(7), 2), true), None, "another run");
        assert_eq!(desk.answer(asked.key(), true), Some(3));
        assert_eq!(desk.take_answer(&asked), Some(true));
        assert_eq!(desk.answer(asked.key(), true), None, "it is not waited for any more");
        assert!(desk.asked.is_empty());
    }

    #[test]
    fn once_it_stops_nothing_begins() {
        let mut desk = StepDesk::default();
        desk.push(step(1, true, false));
        desk.push(step(2, false, false));
        let Next::Take(asked) = desk.next(0, false) else { panic!("a step waits") };
        desk.ask(0, &asked);
        desk.stop();
        assert_eq!(desk.take_answer(&asked), Some(false));
        assert!(matches!(desk.next(1, false), Next::Ended));
        assert_eq!(desk.push(step(3, false, true)), None);
        assert!(matches!(desk.next(1, false), Next::Ended));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a shutdown waits for threads")]
    fn each_turn_of_a_part_does_one_thing() {
        let hub = shared_with(&[("service", 1)]);
        let mut part = StepPart::new(0, Arc::default());
        let mut turn = || part.turn(&*hub, Time(1_000)).unwrap();
        assert_eq!(turn(), Turned::Until(None));
        hub.steps.push(step(1, true, false));
        assert!(hub.steps.bells[0].take_ring());
        assert_eq!(turn(), Turned::Until(None), "it asks");
        assert_eq!(turn(), Turned::Until(None), "no answer has come");
        hub.steps.answer(ShardId(0), TaskId(1), 1, true);
        assert!(hub.steps.bells[0].take_ring());
        assert_eq!(turn(), Turned::Again, "it may begin");
        assert_eq!(hub.steps.desk().running.len(), 1);
        assert_eq!(turn(), Turned::Again, "it runs");
        assert!(hub.steps.desk().running.is_empty());
        let (mut commands, mut inputs): (Vec<Command<()>>, _) = (Vec::new(), Vec::new());
        hub.inboxes[0].take(&mut commands, &mut inputs);
        let inputs: Vec<Input> = inputs.into_iter().map(|(_, input)| input).collect();
        assert!(matches!(
            inputs.as_slice(),
            [Input::StepBegins { .. }, Input::TaskStep { outcome: StepOutcome::Failed(_), .. }]
        ));
        // Another one has begun when the node stops: it does not run.
        hub.steps.push(step(2, false, false));
        assert_eq!(turn(), Turned::Again, "it is taken");
        hub.steps.stop();
        assert_eq!((turn(), turn()), (Turned::Again, Turned::Ended));
        hub.inboxes[0].take(&mut commands, &mut Vec::new());
        assert!(hub.steps.await_end(Instant::now() + Duration::from_secs(1)).is_empty());
    }

    #[test]
    fn a_crowded_part_looks_again_soon() {
        let hub = shared_with(&[("service", 1)]);
        let mut part = StepPart::new(0, Arc::default());
        hub.memory.change([0, i64::MAX, 0]);
        hub.steps.push(step(1, false, false));
        assert_eq!(part.turn(&*hub, Time(1_000)), Ok(Turned::Until(Some(Time(6_000)))));
        hub.memory.change([0, -i64::MAX, 0]);
        assert_eq!(part.turn(&*hub, Time(6_000)), Ok(Turned::Again));
    }
}
