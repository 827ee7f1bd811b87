//! A long computation that survives kills: the sum of 1/n² over a billion terms, which tends to π²/6.
//!
//!     cargo run --release --example resume [DATA_DIRECTORY [TERMS]]
//!
//! The program starts itself as a child, kills it with SIGKILL several times, and reports how little was computed
//! again. With `--child` it is the child: kill that one yourself and start it again.

use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use stead::{Context, Never, Node, Process, Progress, QueryContext, ServiceOptions, StepContext, Task};

const TERMS: u64 = 1_000_000_000;
const TERMS_A_STEP: u64 = 2_000_000;
const KILLS: u32 = 5;

/// The process that requests the computation.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Basel {
    begun: bool,
    sum: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Begin {
        terms: u64,
    },
    /// The task's result.
    Computed {
        sum: f64,
    },
}

impl Process for Basel {
    const SERVICE: &'static str = "basel";
    type Key = String;
    type Request = Request;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = (Option<f64>, f64);

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Request) -> Result<(), Never> {
        match request {
            Request::Begin { terms } if !self.begun => {
                self.begun = true;
                ctx.start_task(Sum { terms, next: terms, sum: 0.0 });
            }
            Request::Begin { .. } => {}
            Request::Computed { sum } => self.sum = Some(sum),
        }
        Ok(())
    }

    fn internal(request: &Request) -> bool {
        matches!(request, Request::Computed { .. })
    }

    fn query(&self, ctx: &QueryContext<'_, Self>, (): ()) -> Result<(Option<f64>, f64), Never> {
        Ok((self.sum, ctx.tasks().first().map_or(0.0, |task| task.progress)))
    }
}

/// The computation. A kill preserves its state between two steps, from which it continues.
#[derive(Debug, Serialize, Deserialize)]
struct Sum {
    terms: u64,
    /// The smallest terms are added first, so that they do not vanish in rounding.
    next: u64,
    sum: f64,
}

impl Task for Sum {
    const NAME: &'static str = "basel-sum";
    type Owner = Basel;

    fn step(&mut self, ctx: &StepContext<'_>) -> Progress {
        note_step(ctx.step());
        let last = self.next.saturating_sub(TERMS_A_STEP);
        for n in (last + 1..=self.next).rev() {
            self.sum += 1.0 / (n as f64 * n as f64);
        }
        self.next = last;
        if last == 0 { Progress::Done } else { Progress::Continue(1.0 - last as f64 / self.terms as f64) }
    }

    fn finish(self) -> Request {
        Request::Computed { sum: self.sum }
    }
}

/// Records that a step begins, outside of the system, so that repeated steps can be counted.
fn note_step(step: u64) {
    if let Some(path) = std::env::var_os("RESUME_STEPS") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| writeln!(file, "{step}")).expect("the record of steps takes a line");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args: Vec<_> = std::env::args_os().skip(1).collect();
    let child = args.iter().position(|arg| arg == "--child").map(|at| args.remove(at)).is_some();
    let mut args = args.into_iter();
    let dir = args.next().map_or_else(
        || std::env::temp_dir().join(format!("stead-resume-{}", std::process::id())),
        PathBuf::from,
    );
    let terms = args.next().map_or(Ok(TERMS), |terms| terms.to_string_lossy().parse())?;
    if child { compute(&dir, terms) } else { kill_and_resume(&dir, terms) }
}

fn compute(dir: &Path, terms: u64) -> Result<(), Box<dyn std::error::Error>> {
    let node = Node::builder(dir)
        .service::<Basel>(ServiceOptions::default().shards(1))
        .task::<Sum>()
        // A small log is enough for this service, and is read quickly at a start.
        .segment_bytes(1 << 20)
        .open()?;
    let client = node.blocking_client();
    let key = "pi".to_owned();
    client.call::<Basel>(&key, Request::Begin { terms })?;
    loop {
        let (sum, progress) = client.query::<Basel>(&key, ())?;
        if let Some(sum) = sum {
            println!("sum {sum:.15}, so π is about {:.12}", (sum * 6.0).sqrt());
            node.shutdown();
            return Ok(());
        }
        println!("{:.1} %", progress * 100.0);
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn kill_and_resume(dir: &Path, terms: u64) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(dir)?;
    let (data, steps) = (dir.join("data"), dir.join("steps"));
    let program = std::env::current_exe()?;
    let start = |stdout| {
        let mut child = Command::new(&program);
        child.arg("--child").arg(&data).arg(terms.to_string());
        child.env("RESUME_STEPS", &steps).stdout(stdout).spawn()
    };
    let began = Instant::now();
    let mut progress = "0.0 %".to_owned();
    for kill in 1..=KILLS {
        let mut child = start(Stdio::piped())?;
        let mut says = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        // It prints its progress every 50 ms; it is killed some time after it has passed the progress of the last kill.
        for line in says.by_ref() {
            let line = line?;
            if line != progress {
                progress = line;
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..150)));
        child.kill()?;
        child.wait()?;
        println!("kill {kill} at {progress}");
    }
    let status = start(Stdio::inherit())?.wait()?;
    let run = read_steps(&steps)?;
    let needed = terms.div_ceil(TERMS_A_STEP);
    let repeated = run.len() as u64 - needed;
    println!(
        "{needed} steps of {TERMS_A_STEP} terms, {KILLS} kills: {repeated} steps computed again ({:.2} % of the work), {:.1} s",
        100.0 * repeated as f64 / needed as f64,
        began.elapsed().as_secs_f64()
    );
    // A step that was killed is repeated: at most once for each kill.
    if !status.success() || repeated > u64::from(KILLS) {
        return Err("more was computed again than one step for each kill".into());
    }
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

fn read_steps(path: &Path) -> std::io::Result<Vec<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        // It was killed before its first step.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
