//! Runs the application to its end while it is killed again and again, and holds it to all that it promised.

use crate::audit::{Again, Audit};
use crate::life::{Life, LifeError};
use crate::offline;
use crate::passengers::{Clientele, Verdict};
use crate::protocol::{Answer, Ask, Checkpoint, Counts, Open, Question, Recovery, Said};
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

/// How often the feeder's position is asked for.
const POSITION_EVERY: Duration = Duration::from_millis(40);

/// How often a passenger checks in.
const PASSENGER_EVERY: Duration = Duration::from_millis(5);

/// Most passengers who wait at a time.
const WAITING_MAX: usize = 32;

/// One of so many check-ins is asked a second time after its answer.
const FORGETFUL_ONE_IN: u64 = 8;

/// Rows of a feed that ends when it is told to.
const ENDLESS: u64 = u64::MAX / 4;

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program that runs the application, [`crate::child::run`], with its arguments.
    pub command: Vec<OsString>,
    /// Where the run may keep its files: a new directory.
    pub dir: PathBuf,
    /// Where the data directories are to be, if elsewhere.
    pub data_dir: Option<PathBuf>,
    /// The file to feed from; the bundled one if there is none.
    pub input: Option<PathBuf>,
    /// Pass over malformed rows.
    pub skip_malformed: bool,
    /// Rows a second.
    pub rate: f64,
    /// Seed of all that is drawn at random.
    pub seed: u64,
    /// When it is killed.
    pub kills: Kills,
    /// Go back to a checkpoint once, half way through the kills.
    pub restore: bool,
    /// The time between two checkpoints.
    pub checkpoint_every: Duration,
    /// How long nothing that is waited for may happen: an answer, a row, a checkpoint. [`Plan::PATIENCE`] for people.
    pub patience: Duration,
    /// Set by whoever wants the run to end before its time.
    pub stop: Arc<AtomicBool>,
}

impl Plan {
    /// 60 s.
    pub const PATIENCE: Duration = Duration::from_secs(60);
}

/// When the application is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kills {
    /// So many times, spread at random over one pass through the file.
    Spread(u32),
    /// So many times, each at a random moment: one in four after its start, so that recoveries are killed too, the others
    /// after it took questions. The file is fed again and again meanwhile.
    Timed {
        /// How many times.
        kills: u32,
        /// The longest time from there to the kill.
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

/// What happens during a run.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// The feeder is so far.
    Fed(Position),
    /// The application was killed, for the so-manieth time.
    Killed(u32),
    /// It takes questions again.
    Recovered(&'a Recovery),
    /// A checkpoint is complete.
    Checkpoint(&'a Checkpoint),
    /// A checkpoint failed.
    CheckpointFailed(&'a str),
    /// It was put back to this checkpoint.
    Restored(u64),
    /// All is fed: what is in flight arrives, and totals are compared.
    Comparing,
}

/// Why a run has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConductError {
    /// The application can't be run.
    #[error(transparent)]
    Life(#[from] LifeError),
    /// The application can't do what it was asked.
    #[error("the application cannot continue: {reason}")]
    Failed {
        /// What it says.
        reason: String,
    },
    /// The feeder gets no further.
    #[error("no row has been fed for {} s after row {row}", waited.as_secs())]
    Stuck {
        /// The last row.
        row: u64,
        /// For how long.
        waited: Duration,
    },
    /// A checkpoint is needed, and none completes.
    #[error("no checkpoint was completed within {} s: {reason}", waited.as_secs())]
    NoCheckpoint {
        /// How long it was waited for.
        waited: Duration,
        /// Why the last one failed.
        reason: String,
    },
    /// Files of the run can't be read or written.
    #[error("{what} failed: {source}")]
    Io {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The log of the application can't be read.
    #[error("cannot read the log in {}: {reason}", dir.display())]
    Log {
        /// The data directory.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
    /// Restoring a checkpoint failed.
    #[error("cannot restore checkpoint {number}: {reason}")]
    Restore {
        /// The checkpoint.
        number: u64,
        /// Why.
        reason: String,
    },
    /// What kills the application failed.
    #[error("{0}")]
    Executioner(String),
}

/// How a life is ended; after it the data directory can be opened again.
pub trait Executioner {
    /// Ends it at once, without a word to it; `kill` sends SIGKILL and waits.
    ///
    /// # Errors
    /// Why it can't.
    fn end(&mut self, kill: &mut dyn FnMut() -> Result<(), LifeError>) -> Result<(), ConductError>;
}

/// SIGKILL.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sigkill;

impl Executioner for Sigkill {
    fn end(&mut self, kill: &mut dyn FnMut() -> Result<(), LifeError>) -> Result<(), ConductError> {
        Ok(kill()?)
    }
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Rows that were fed.
    pub rows: u64,
    /// Times that it was killed.
    pub kills: u32,
    /// The totals as the processes hold them.
    pub totals: Totals,
    /// The totals as they should be.
    pub expected: Totals,
    /// How they differ.
    pub difference: Difference,
    /// What became of the requests of the outside client.
    pub requests: Verdict,
    /// What was computed again.
    pub again: Again,
    /// Rows fed again after the restore.
    pub rows_replayed: u64,
    /// The checkpoint that was restored.
    pub restored: Option<u64>,
    /// All checkpoints.
    pub checkpoints: Vec<Checkpoint>,
    /// Checkpoints that failed; the work goes on then.
    pub checkpoints_failed: u64,
    /// All recoveries.
    pub recoveries: Vec<Recovery>,
}

impl Outcome {
    /// Requests and rows that are lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.difference.missing + self.requests.lost
    }

    /// Requests and rows that were applied twice.
    #[must_use]
    pub fn doubled(&self) -> u64 {
        self.difference.extra + self.requests.doubled
    }

    /// All totals are those of the straightforward computation.
    #[must_use]
    pub fn totals_match(&self) -> bool {
        self.difference.is_none()
    }

    /// Nothing is lost, doubled or recomputed, the totals are right, and the services' checks held at each checkpoint.
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

/// Runs the application on these flights, which must be what the child reads by the plan's input.
///
/// # Errors
/// [`ConductError`] if it can't be run; a result that is wrong is no error but an [`Outcome`] that does not hold.
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
    let counts = Counts {
        aircraft: expected.aircraft.count,
        airport: expected.airports.len() as u64,
        carrier: expected.carriers.len() as u64,
    };
    difference.sums += u64::from(last.processes != counts);
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
    /// By checkpoint number of this incarnation, how many had begun with it.
    begun_at: BTreeMap<u64, u64>,
    checkpoints_failed: u64,
    /// Why the last one failed.
    checkpoint_failure: Option<String>,
    recoveries: Vec<Recovery>,
    incarnation: u32,
    /// The client has yet to see what a restore left of its requests; how many checkpoints had begun with that one.
    reconciles: Option<u64>,
    /// Of the present life.
    asked: Asked,
    lives: u32,
    rows: u64,
}

/// What the last life told at the end.
struct Last {
    rows: u64,
    totals: Totals,
    processes: Counts,
    passengers: Passengers,
}

/// When a life is to end.
#[derive(Clone, Copy)]
enum End {
    /// Once the feeder is at this row, and a while after.
    Row(u64, Duration),
    /// At this moment, ready or not.
    At(Instant),
    /// So long after it is ready.
    After(Duration),
    /// When all is done.
    Never,
}

/// What a life was asked and has not answered.
#[derive(Default)]
struct Asked {
    next_id: u64,
    passengers: HashMap<u64, u64>,
    position: Option<u64>,
}

/// What the conductor waits for.
enum Heard {
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
            self.bury(&mut life)?;
            (self.watch)(Event::Killed(killed));
            if restores {
                restored = self.restore()?;
            }
        }
        if restore_after == Some(0) {
            let mut life = self.start()?;
            self.live(&mut life, End::Row(self.rows / 2, Duration::ZERO), true)?;
            self.ask(&mut life, Question::Stop);
            self.bury_peacefully(&mut life)?;
            restored = self.restore()?;
        }
        let mut life = self.start()?;
        self.live(&mut life, End::Never, false)?;
        let last = self.finish(&mut life)?;
        self.bury_peacefully(&mut life)?;
        Ok((restored, last))
    }

    fn data_dir(&self) -> PathBuf {
        let parent = self.plan.data_dir.as_ref().unwrap_or(&self.plan.dir);
        parent.join(format!("data-{}", self.incarnation))
    }

    fn runs_file(&self) -> PathBuf {
        self.plan.dir.join(format!("runs-{}", self.lives))
    }

    fn start(&mut self) -> Result<Life<Said>, ConductError> {
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

    /// Lets it live until its end is due, and it has completed a checkpoint if it must.
    fn live(&mut self, life: &mut Life<Said>, end: End, checkpointed: bool) -> Result<(), ConductError> {
        if !self.until_ready(life, end)? {
            return Ok(());
        }
        self.ask(life, Question::Feed { rows: self.rows, rate: self.plan.rate });
        self.ask_again(life);
        let (mut next_position, mut next_passenger) = (Instant::now(), Instant::now());
        let mut heard_at = Instant::now();
        let mut fed_at = heard_at;
        let patience = self.plan.patience;
        let mut due = match end {
            End::At(at) => Some(at),
            End::After(wait) => Some(heard_at + wait),
            End::Row(..) | End::Never => None,
        };
        loop {
            let now = Instant::now();
            let may_end = !checkpointed || !self.begun_at.is_empty();
            if due.is_some_and(|due| due <= now) && may_end {
                return Ok(());
            }
            if now.duration_since(heard_at) > patience {
                return Err(life.silent(patience).into());
            }
            // It may go on answering without getting anywhere.
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
            let Some(said) = life.hear(due.filter(|_| may_end).map_or(soon, |due| due.min(soon)))? else {
                continue;
            };
            heard_at = Instant::now();
            let row = self.position.next_row;
            let Heard::Position = self.take(said)? else { continue };
            if self.position.next_row != row {
                fed_at = heard_at;
            }
            match end {
                End::Row(row, wait) if due.is_none() && self.position.next_row >= row => {
                    due = Some(heard_at + wait)
                }
                End::Never if self.rows == ENDLESS || self.position.next_row >= self.rows => return Ok(()),
                End::Row(..) | End::At(_) | End::After(_) | End::Never => {}
            }
        }
    }

    /// Waits until it takes questions; false if its end comes first.
    fn until_ready(&mut self, life: &mut Life<Said>, end: End) -> Result<bool, ConductError> {
        let give_up = life.started + self.plan.patience;
        let until = match end {
            End::At(at) => at.min(give_up),
            End::Row(..) | End::After(_) | End::Never => give_up,
        };
        loop {
            match life.hear(until)? {
                Some(Said::Ready(mut recovery)) => {
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
                Some(said) => drop(self.take(said)?),
                None if matches!(end, End::At(_)) => return Ok(false),
                None => return Err(life.silent(self.plan.patience).into()),
            }
        }
    }

    /// Asks all who wait for an answer of an earlier life, and one who has got it, too.
    fn ask_again(&mut self, life: &mut Life<Said>) {
        let waiting: Vec<u64> =
            self.clients.waiting().chain(self.clients.forgetful(self.rng.u64(..))).collect();
        for passenger in waiting {
            let id = self.ask(life, Question::CheckIn { passenger });
            self.asked.passengers.insert(id, passenger);
        }
    }

    fn ask_next(&mut self, life: &mut Life<Said>) {
        let passenger = match self.rng.u64(..FORGETFUL_ONE_IN) {
            0 => self.clients.forgetful(self.rng.u64(..)),
            _ => None,
        };
        let passenger = passenger.unwrap_or_else(|| self.clients.new_passenger());
        let id = self.ask(life, Question::CheckIn { passenger });
        self.asked.passengers.insert(id, passenger);
    }

    fn ask(&mut self, life: &mut Life<Said>, what: Question) -> u64 {
        let id = self.asked.next_id;
        self.asked.next_id += 1;
        life.tell(&Ask { id, what });
        id
    }

    fn take(&mut self, said: Said) -> Result<Heard, ConductError> {
        match said {
            Said::Ready(_) => {}
            Said::CheckpointBegins => self.checkpoints_begun += 1,
            Said::Checkpoint(checkpoint) => {
                (self.watch)(Event::Checkpoint(&checkpoint));
                self.begun_at.insert(checkpoint.number, self.checkpoints_begun);
                self.checkpoints.push(checkpoint);
            }
            Said::CheckpointFailed { reason } => {
                (self.watch)(Event::CheckpointFailed(&reason));
                self.checkpoints_failed += 1;
                self.checkpoint_failure = Some(reason);
            }
            Said::Answered { id, answer: Answer::Number(number) } => {
                if let Some(passenger) = self.asked.passengers.remove(&id) {
                    self.clients.answered(passenger, number, self.checkpoints_begun);
                }
            }
            Said::Answered { id, answer: Answer::Position(position) } if self.asked.position == Some(id) => {
                self.asked.position = None;
                self.position = position;
                (self.watch)(Event::Fed(position));
                return Ok(Heard::Position);
            }
            Said::Answered { id, answer } => return Ok(Heard::Answer(id, answer)),
            // A passenger whom nobody answered asks again later; nothing else may fail.
            Said::Failed { id: Some(id), .. } if self.asked.passengers.remove(&id).is_some() => {}
            Said::Failed { reason, .. } => return Err(ConductError::Failed { reason }),
        }
        Ok(Heard::Else)
    }

    /// Asks and waits for the answer.
    fn answer_of(&mut self, life: &mut Life<Said>, question: Question) -> Result<Answer, ConductError> {
        let id = self.ask(life, question);
        let until = Instant::now() + self.plan.patience;
        while let Some(said) = life.hear(until)? {
            match self.take(said)? {
                Heard::Answer(answered, answer) if answered == id => return Ok(answer),
                Heard::Answer(..) | Heard::Position | Heard::Else => {}
            }
        }
        Err(life.silent(self.plan.patience).into())
    }

    fn passengers(&mut self, life: &mut Life<Said>) -> Result<Passengers, ConductError> {
        match self.answer_of(life, Question::Passengers)? {
            Answer::Passengers(passengers) => Ok(passengers),
            other => Err(ConductError::Failed {
                reason: format!("it answers {other:?} when asked for passengers"),
            }),
        }
    }

    /// All is fed: lets it come to rest and reads what it holds.
    fn finish(&mut self, life: &mut Life<Said>) -> Result<Last, ConductError> {
        self.answer_of(life, Question::Finish)?;
        while self.clients.waiting().len() > 0 {
            if self.asked.passengers.is_empty() {
                self.ask_again(life);
            }
            let said = life
                .hear(Instant::now() + self.plan.patience)?
                .ok_or_else(|| life.silent(self.plan.patience))?;
            self.take(said)?;
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

    fn bury_peacefully(&mut self, life: &mut Life<Said>) -> Result<(), ConductError> {
        for said in life.wait(self.plan.patience)? {
            self.take(said)?;
        }
        self.post_mortem()
    }

    /// Takes in what it said before it was killed: an answer that was on its way counts.
    fn bury(&mut self, life: &mut Life<Said>) -> Result<(), ConductError> {
        for said in life.last_words() {
            match self.take(said) {
                // What it failed to do while it died is of no interest.
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
