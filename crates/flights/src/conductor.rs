//! Runs the application to its end while it is killed again and again, and checks all of its guarantees.

use crate::audit::{Again, Audit};
use crate::error::ConductError;
use crate::life::{Life, LifeError};
use crate::offline;
use crate::passengers::{Clientele, Verdict};
use crate::protocol::{Answer, Ask, Checkpoint, Counts, Open, Question, Recovery, Report};
use crate::reader::Flights;
use crate::runs;
use crate::services::{Passengers, Position};
use crate::totals::{Difference, Totals};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Interval at which the feeder's position is requested.
const POSITION_EVERY: Duration = Duration::from_millis(40);

/// Interval at which passengers check in.
const PASSENGER_EVERY: Duration = Duration::from_millis(5);

/// Maximum number of passengers that wait at a time.
const WAITING_MAX: usize = 32;

/// One of this many check-ins repeats one that was answered.
const FORGETFUL_ONE_IN: u64 = 8;

/// Rows of a feed that ends only at [`Question::Finish`].
const ENDLESS: u64 = u64::MAX / 4;

/// Settings of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program that runs the application, [`crate::child::run`], with its arguments.
    pub command: Vec<OsString>,
    /// Directory for the files of the run; it must be new.
    pub dir: PathBuf,
    /// Directory for the data directories, if it is another one.
    pub data_dir: Option<PathBuf>,
    /// The file to feed from; the bundled one by default.
    pub input: Option<PathBuf>,
    /// Skip malformed rows.
    pub skip_malformed: bool,
    /// Rows a second.
    pub rate: f64,
    /// Seed of all random choices.
    pub seed: u64,
    /// Number and times of the kills.
    pub kills: Kills,
    /// Whether to restore a checkpoint once, after half of the kills.
    pub restore: bool,
    /// The time between two checkpoints.
    pub checkpoint_every: Duration,
    /// Longest wait for the next event: an answer, a row, a checkpoint. [`Plan::PATIENCE`] for people.
    pub patience: Duration,
    /// Set to end the run early.
    pub stop: Arc<AtomicBool>,
}

impl Plan {
    /// Default of [`Plan::patience`]: 60 s.
    pub const PATIENCE: Duration = Duration::from_secs(60);
}

/// Number and times of the kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kills {
    /// This many, at random rows of one pass through the file.
    Spread(u32),
    /// Each at a random moment: one in four counted from the start, so that recoveries are killed too, the others from
    /// when the application is ready. The file is fed again and again meanwhile.
    Timed {
        /// The number of kills.
        kills: u32,
        /// The longest time until a kill.
        life_max: Duration,
    },
}

impl Kills {
    fn count(self) -> u32 {
        match self {
            Self::Spread(kills) | Self::Timed { kills, .. } => kills,
        }
    }
}

/// An event of a run.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// The feeder's position.
    Fed(Position),
    /// The application was killed; the number of kills so far.
    Killed(u32),
    /// The application is ready again.
    Recovered(&'a Recovery),
    /// A checkpoint is complete.
    Checkpoint(&'a Checkpoint),
    /// A checkpoint failed.
    CheckpointFailed(&'a str),
    /// This checkpoint was restored.
    Restored(u64),
    /// All rows are fed: the messages in flight arrive, and the totals are compared.
    Comparing,
}

/// Ends a life; afterwards the data directory can be opened again.
pub trait Executioner {
    /// Ends the process at once, without a warning; `kill` sends SIGKILL and waits.
    ///
    /// # Errors
    /// [`ConductError`] if that fails.
    fn end(&mut self, kill: &mut dyn FnMut() -> Result<(), LifeError>) -> Result<(), ConductError>;
}

/// Kills with SIGKILL.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sigkill;

impl Executioner for Sigkill {
    fn end(&mut self, kill: &mut dyn FnMut() -> Result<(), LifeError>) -> Result<(), ConductError> {
        Ok(kill()?)
    }
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Rows that were fed.
    pub rows: u64,
    /// Number of kills.
    pub kills: u32,
    /// The totals according to the processes.
    pub totals: Totals,
    /// The expected totals.
    pub expected: Totals,
    /// The difference between the two.
    pub difference: Difference,
    /// The result of the outside client's requests.
    pub requests: Verdict,
    /// Work that was computed again.
    pub again: Again,
    /// Rows fed again after the restore.
    pub rows_replayed: u64,
    /// The checkpoint that was restored.
    pub restored: Option<u64>,
    /// All checkpoints.
    pub checkpoints: Vec<Checkpoint>,
    /// Checkpoints that failed; the run continues after a failure.
    pub checkpoints_failed: u64,
    /// All recoveries.
    pub recoveries: Vec<Recovery>,
}

impl Outcome {
    /// Returns the number of lost requests and rows.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.difference.missing + self.requests.lost
    }

    /// Returns the number of requests and rows that were applied twice.
    #[must_use]
    pub fn doubled(&self) -> u64 {
        self.difference.extra + self.requests.doubled
    }

    /// Returns whether all totals equal those of the straightforward computation.
    #[must_use]
    pub fn totals_match(&self) -> bool {
        self.difference.is_none()
    }

    /// Returns whether nothing is lost, doubled or recomputed, the totals match, and the services' checks held at each
    /// checkpoint.
    #[must_use]
    pub fn holds(&self) -> bool {
        let checks_hold = self.checkpoints.iter().all(|checkpoint| checkpoint.failed_checks.is_empty());
        checks_hold
            && self.totals_match()
            && self.lost() == 0
            && self.doubled() == 0
            && self.again.recomputed == 0
    }
}

/// Runs the application on these flights, which must be those that the child reads by the plan's input.
///
/// # Errors
/// [`ConductError`] if it cannot be run; a wrong result is not an error but an [`Outcome`] that does not hold.
pub fn conduct(
    plan: &Plan,
    flights: &Flights,
    executioner: &mut dyn Executioner,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome, ConductError> {
    let mut run = Conductor {
        plan,
        watch,
        rng: fastrand::Rng::with_seed(plan.seed),
        clients: Clientele::new(),
        audit: Audit::new(),
        position: Position::default(),
        checkpoints: Vec::new(),
        checkpoints_begun: 0,
        begun_at: BTreeMap::new(),
        checkpoints_failed: 0,
        checkpoint_failure: None,
        recoveries: Vec::new(),
        incarnation: 0,
        reconciles: None,
        asked: Asked::default(),
        lives: 0,
        rows: match plan.kills {
            Kills::Spread(_) => flights.rows.len() as u64,
            Kills::Timed { .. } => ENDLESS,
        },
    };
    let (restored, last) = run.lives(executioner)?;
    let rows = last.rows;
    let each =
        flights.rows.iter().cycle().take(usize::try_from(rows).expect("fewer rows than memory has bytes"));
    let expected = Totals::of(each);
    let mut difference = last.totals.difference(&expected);
    difference.sums += u64::from(last.processes != Counts::of(&expected));
    Ok(Outcome {
        rows,
        kills: plan.kills.count(),
        totals: last.totals,
        expected,
        difference,
        requests: run.clients.verdict(&last.passengers),
        again: run.audit.again(),
        rows_replayed: run.audit.rows_replayed(),
        restored,
        checkpoints: run.checkpoints,
        checkpoints_failed: run.checkpoints_failed,
        recoveries: run.recoveries,
    })
}

struct Conductor<'a> {
    plan: &'a Plan,
    watch: &'a mut dyn FnMut(Event<'_>),
    rng: fastrand::Rng,
    clients: Clientele,
    audit: Audit,
    position: Position,
    checkpoints: Vec<Checkpoint>,
    checkpoints_begun: u64,
    /// For each checkpoint of this incarnation, the number of checkpoints that had begun by then.
    begun_at: BTreeMap<u64, u64>,
    checkpoints_failed: u64,
    /// Reason of the last failure.
    checkpoint_failure: Option<String>,
    recoveries: Vec<Recovery>,
    incarnation: u32,
    /// Set after a restore until the client has compared its requests with the restored state: the number of
    /// checkpoints that had begun with the restored one.
    reconciles: Option<u64>,
    /// Open questions of the present life.
    asked: Asked,
    lives: u32,
    rows: u64,
}

/// The final reports of the last life.
struct Last {
    rows: u64,
    totals: Totals,
    processes: Counts,
    passengers: Passengers,
}

/// The end of a life.
#[derive(Clone, Copy)]
enum End {
    /// A time after the feeder has reached this row.
    Row(u64, Duration),
    /// At this moment, ready or not.
    At(Instant),
    /// This long after it is ready.
    After(Duration),
    /// When all rows are fed.
    Never,
}

/// Open questions of a life.
#[derive(Default)]
struct Asked {
    next_id: u64,
    passengers: HashMap<u64, u64>,
    position: Option<u64>,
}

/// The kinds of reports that the conductor may wait for.
enum Received {
    Position,
    Answer(u64, Answer),
    Else,
}

impl Conductor<'_> {
    fn lives(&mut self, executioner: &mut dyn Executioner) -> Result<(Option<u64>, Last), ConductError> {
        let kills = self.plan.kills.count();
        let margin = self.rows / 50;
        let mut rows: Vec<u64> = (0..kills).map(|_| self.rng.u64(margin..=self.rows - margin)).collect();
        rows.sort_unstable();
        let restore_after = self.plan.restore.then(|| kills.div_ceil(2));
        let mut restored = None;
        for (killed, row) in (1..=kills).zip(rows) {
            let restores = restore_after == Some(killed);
            let mut life = self.start()?;
            let end = match self.plan.kills {
                Kills::Spread(_) => End::Row(row, Duration::from_millis(self.rng.u64(0..80))),
                Kills::Timed { life_max, .. } => {
                    let wait = life_max.mul_f64(self.rng.f64());
                    if self.rng.u8(..4) == 0 { End::At(life.started + wait) } else { End::After(wait) }
                }
            };
            self.live(&mut life, end, restores)?;
            executioner.end(&mut || life.kill())?;
            self.take_remaining(&mut life)?;
            (self.watch)(Event::Killed(killed));
            if restores {
                restored = self.restore()?;
            }
        }
        if restore_after == Some(0) {
            let mut life = self.start()?;
            self.live(&mut life, End::Row(self.rows / 2, Duration::ZERO), true)?;
            self.ask(&mut life, Question::Stop);
            self.wait_for_end(&mut life)?;
            restored = self.restore()?;
        }
        let mut life = self.start()?;
        self.live(&mut life, End::Never, false)?;
        let last = self.finish(&mut life)?;
        self.wait_for_end(&mut life)?;
        Ok((restored, last))
    }

    fn data_dir(&self) -> PathBuf {
        let parent = self.plan.data_dir.as_ref().unwrap_or(&self.plan.dir);
        parent.join(format!("data-{}", self.incarnation))
    }

    fn runs_file(&self) -> PathBuf {
        self.plan.dir.join(format!("runs-{}", self.lives))
    }

    fn start(&mut self) -> Result<Life<Report>, ConductError> {
        self.lives += 1;
        self.asked = Asked::default();
        let open = Open {
            data: self.data_dir(),
            runs: self.runs_file(),
            input: self.plan.input.clone(),
            skip_malformed: self.plan.skip_malformed,
            checkpoint_every_ms: u64::try_from(self.plan.checkpoint_every.as_millis()).unwrap_or(u64::MAX),
        };
        let stderr = self.plan.dir.join(format!("stderr-{}", self.lives));
        Ok(Life::start(&self.plan.command, &open, &stderr)?.until(&self.plan.stop))
    }

    /// Runs a life until its end is due, and it has completed a checkpoint if `checkpointed`.
    fn live(&mut self, life: &mut Life<Report>, end: End, checkpointed: bool) -> Result<(), ConductError> {
        if !self.until_ready(life, end)? {
            return Ok(());
        }
        self.ask(life, Question::Feed { rows: self.rows, rate: self.plan.rate });
        self.ask_again(life);
        let (mut next_position, mut next_passenger) = (Instant::now(), Instant::now());
        let mut received_at = Instant::now();
        let mut fed_at = received_at;
        let patience = self.plan.patience;
        let mut due = match end {
            End::At(at) => Some(at),
            End::After(wait) => Some(received_at + wait),
            End::Row(..) | End::Never => None,
        };
        loop {
            let now = Instant::now();
            let may_end = !checkpointed || !self.begun_at.is_empty();
            if due.is_some_and(|due| due <= now) && may_end {
                return Ok(());
            }
            if now.duration_since(received_at) > patience {
                return Err(life.silent(patience).into());
            }
            // It may keep answering without making progress.
            match due {
                Some(due) if now > due + patience => {
                    let reason = self.checkpoint_failure.take();
                    let reason = reason.unwrap_or_else(|| "none has failed either".to_owned());
                    return Err(ConductError::NoCheckpoint { waited: patience, reason });
                }
                None if now.duration_since(fed_at) > patience => {
                    return Err(ConductError::Stuck { row: self.position.next_row, waited: patience });
                }
                Some(_) | None => {}
            }
            if next_position <= now && self.asked.position.is_none() {
                self.asked.position = Some(self.ask(life, Question::Position));
                next_position = now + POSITION_EVERY;
            }
            if next_passenger <= now && self.asked.passengers.len() < WAITING_MAX {
                self.ask_next(life);
                next_passenger = now + PASSENGER_EVERY;
            }
            let soon = now + PASSENGER_EVERY;
            let Some(report) = life.receive(due.filter(|_| may_end).map_or(soon, |due| due.min(soon)))?
            else {
                continue;
            };
            received_at = Instant::now();
            let row = self.position.next_row;
            let Received::Position = self.take(report)? else { continue };
            if self.position.next_row != row {
                fed_at = received_at;
            }
            match end {
                End::Row(row, wait) if due.is_none() && self.position.next_row >= row => {
                    due = Some(received_at + wait)
                }
                End::Never if self.rows == ENDLESS || self.position.next_row >= self.rows => return Ok(()),
                End::Row(..) | End::At(_) | End::After(_) | End::Never => {}
            }
        }
    }

    /// Waits until the application is ready; returns false if its end comes first.
    fn until_ready(&mut self, life: &mut Life<Report>, end: End) -> Result<bool, ConductError> {
        let give_up = life.started + self.plan.patience;
        let until = match end {
            End::At(at) => at.min(give_up),
            End::Row(..) | End::After(_) | End::Never => give_up,
        };
        loop {
            match life.receive(until)? {
                Some(Report::Ready(mut recovery)) => {
                    recovery.ready_ms = life.started.elapsed().as_secs_f64() * 1e3;
                    recovery.restored = self.reconciles.is_some();
                    if self.lives > 1 {
                        (self.watch)(Event::Recovered(&recovery));
                        self.recoveries.push(recovery);
                    }
                    if let Some(checkpoint_begun) = self.reconciles.take() {
                        let passengers = self.passengers(life)?;
                        self.clients.restored(&passengers, checkpoint_begun);
                    }
                    return Ok(true);
                }
                Some(report) => drop(self.take(report)?),
                None if matches!(end, End::At(_)) => return Ok(false),
                None => return Err(life.silent(self.plan.patience).into()),
            }
        }
    }

    /// Repeats all check-ins that earlier lives did not answer, and one that was answered.
    fn ask_again(&mut self, life: &mut Life<Report>) {
        let waiting: Vec<u64> =
            self.clients.waiting().chain(self.clients.forgetful(self.rng.u64(..))).collect();
        for passenger in waiting {
            let id = self.ask(life, Question::CheckIn { passenger });
            self.asked.passengers.insert(id, passenger);
        }
    }

    fn ask_next(&mut self, life: &mut Life<Report>) {
        let passenger = match self.rng.u64(..FORGETFUL_ONE_IN) {
            0 => self.clients.forgetful(self.rng.u64(..)),
            _ => None,
        };
        let passenger = passenger.unwrap_or_else(|| self.clients.new_passenger());
        let id = self.ask(life, Question::CheckIn { passenger });
        self.asked.passengers.insert(id, passenger);
    }

    fn ask(&mut self, life: &mut Life<Report>, what: Question) -> u64 {
        let id = self.asked.next_id;
        self.asked.next_id += 1;
        life.send(&Ask { id, what });
        id
    }

    fn take(&mut self, report: Report) -> Result<Received, ConductError> {
        match report {
            Report::Ready(_) => {}
            Report::CheckpointBegins => self.checkpoints_begun += 1,
            Report::Checkpoint(checkpoint) => {
                (self.watch)(Event::Checkpoint(&checkpoint));
                self.begun_at.insert(checkpoint.number, self.checkpoints_begun);
                self.checkpoints.push(checkpoint);
            }
            Report::CheckpointFailed { reason } => {
                (self.watch)(Event::CheckpointFailed(&reason));
                self.checkpoints_failed += 1;
                self.checkpoint_failure = Some(reason);
            }
            Report::Answered { id, answer: Answer::Number(number) } => {
                if let Some(passenger) = self.asked.passengers.remove(&id) {
                    self.clients.answered(passenger, number, self.checkpoints_begun);
                }
            }
            Report::Answered { id, answer: Answer::Position(position) }
                if self.asked.position == Some(id) =>
            {
                self.asked.position = None;
                self.position = position;
                (self.watch)(Event::Fed(position));
                return Ok(Received::Position);
            }
            Report::Answered { id, answer } => return Ok(Received::Answer(id, answer)),
            // An unanswered passenger asks again later; nothing else may fail.
            Report::Failed { id: Some(id), .. } if self.asked.passengers.remove(&id).is_some() => {}
            Report::Failed { reason, .. } => return Err(ConductError::Failed { reason }),
        }
        Ok(Received::Else)
    }

    /// Asks a question and waits for the answer.
    fn answer_of(&mut self, life: &mut Life<Report>, question: Question) -> Result<Answer, ConductError> {
        let id = self.ask(life, question);
        let until = Instant::now() + self.plan.patience;
        while let Some(report) = life.receive(until)? {
            match self.take(report)? {
                Received::Answer(answered, answer) if answered == id => return Ok(answer),
                Received::Answer(..) | Received::Position | Received::Else => {}
            }
        }
        Err(life.silent(self.plan.patience).into())
    }

    fn passengers(&mut self, life: &mut Life<Report>) -> Result<Passengers, ConductError> {
        match self.answer_of(life, Question::Passengers)? {
            Answer::Passengers(passengers) => Ok(passengers),
            other => Err(ConductError::Failed {
                reason: format!("it answers {other:?} when asked for passengers"),
            }),
        }
    }

    /// After all rows are fed: waits until no message is in flight, and reads the totals.
    fn finish(&mut self, life: &mut Life<Report>) -> Result<Last, ConductError> {
        self.answer_of(life, Question::Finish)?;
        while self.clients.waiting().len() > 0 {
            if self.asked.passengers.is_empty() {
                self.ask_again(life);
            }
            let report = life
                .receive(Instant::now() + self.plan.patience)?
                .ok_or_else(|| life.silent(self.plan.patience))?;
            self.take(report)?;
        }
        (self.watch)(Event::Comparing);
        let answer = self.answer_of(life, Question::Totals)?;
        let Answer::Totals { fed, totals, processes } = answer else {
            return Err(ConductError::Failed {
                reason: format!("it answers {answer:?} when asked for totals"),
            });
        };
        let passengers = self.passengers(life)?;
        self.ask(life, Question::Stop);
        Ok(Last { rows: fed, totals, processes, passengers })
    }

    fn wait_for_end(&mut self, life: &mut Life<Report>) -> Result<(), ConductError> {
        for report in life.wait(self.plan.patience)? {
            self.take(report)?;
        }
        self.post_mortem()
    }

    /// Handles the reports sent before the kill: an answer in flight counts.
    fn take_remaining(&mut self, life: &mut Life<Report>) -> Result<(), ConductError> {
        for report in life.remaining() {
            match self.take(report) {
                // Failures while it died are irrelevant.
                Ok(_) | Err(ConductError::Failed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.post_mortem()
    }

    fn post_mortem(&mut self) -> Result<(), ConductError> {
        let path = self.runs_file();
        // A life that ended before it opened recorded nothing.
        if path.exists() {
            let io = |source| ConductError::Io { what: "reading the record of handler runs", source };
            let runs = runs::read(&path).map_err(io)?;
            self.audit.end_life(&runs, &offline::committed(&self.data_dir())?);
            std::fs::remove_file(&path).map_err(io)?;
        }
        Ok(())
    }

    fn restore(&mut self) -> Result<Option<u64>, ConductError> {
        let newest: Vec<(u64, u64)> =
            self.begun_at.iter().rev().take(2).map(|(number, begun)| (*number, *begun)).collect();
        let (number, begun) = newest[self.rng.usize(..newest.len())];
        let from = self.data_dir();
        self.incarnation += 1;
        offline::restore(&from, number, &self.data_dir())?;
        self.audit.restore();
        self.begun_at.clear();
        self.reconciles = Some(begun);
        (self.watch)(Event::Restored(number));
        Ok(Some(number))
    }
}
