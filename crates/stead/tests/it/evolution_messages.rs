//! Messages, timers and tasks of an older version of a service that are still waiting.

use crate::patience::{await_some, await_until};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use stead::{
    Context, Never, Node, NodeBuilder, Process, Progress, QueryContext, RawError, ServiceOptions,
    StepContext, Task, Time,
};

/// The messages that one version of the service can read, and its reaction to them.
trait Words: Serialize + DeserializeOwned + Send + 'static {
    const VERSION: u32;
    fn handle(self, ctx: &mut Context<'_, Listener<Self>>) -> Option<String>;
}

#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
struct Listener<W> {
    heard: Vec<String>,
    #[serde(skip)]
    _words: PhantomData<fn() -> W>,
}

impl<W> Default for Listener<W> {
    fn default() -> Self {
        Self { heard: Vec::new(), _words: PhantomData }
    }
}

impl<W: Words> Process for Listener<W> {
    const SERVICE: &'static str = "listener";
    const VERSION: u32 = W::VERSION;
    type Key = String;
    type Request = W;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = Vec<String>;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, words: W) -> Result<(), Never> {
        self.heard.extend(words.handle(ctx));
        Ok(())
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<Vec<String>, Never> {
        Ok(self.heard.clone())
    }
}

/// The first version.
#[derive(Serialize, Deserialize)]
enum Old {
    /// Holds its shard from when it creates one file until the other exists.
    Hold {
        entered: PathBuf,
        go: PathBuf,
    },
    /// Sends a message, sets a timer and starts a task.
    Spread {
        to: String,
    },
    Tell {
        text: String,
        gone: u32,
    },
}

const HOUR: Duration = Duration::from_secs(3600);

fn old(text: &str) -> Old {
    Old::Tell { text: text.to_owned(), gone: 7 }
}

impl Words for Old {
    const VERSION: u32 = 1;

    fn handle(self, ctx: &mut Context<'_, Listener<Self>>) -> Option<String> {
        match self {
            Self::Hold { entered, go } => {
                std::fs::write(entered, "").unwrap();
                await_until("the shard may go on", || go.exists());
                None
            }
            Self::Spread { to } => {
                ctx.send::<Listener<Self>>(&to, old("message"));
                ctx.set_timer(HOUR, old("timer"));
                ctx.start_task(OldTask { text: "task".to_owned(), gone: 7 });
                None
            }
            Self::Tell { text, .. } => Some(text),
        }
    }
}

/// Works as long as its program lives.
#[derive(Serialize, Deserialize)]
struct OldTask {
    text: String,
    gone: u32,
}

impl Task for OldTask {
    const NAME: &'static str = "work";
    type Owner = Listener<Old>;
    fn step(&mut self, ctx: &StepContext<'_>) -> Progress {
        while !ctx.is_stopping() {
            std::thread::yield_now();
        }
        Progress::Continue(0.5)
    }
    fn finish(self) -> Old {
        old(&self.text)
    }
}

/// A variant was renamed; in it a field was added and one removed.
#[derive(Serialize, Deserialize)]
enum New {
    #[serde(alias = "Tell")]
    Told {
        text: String,
        #[serde(default = "forty")]
        added: u32,
    },
}

fn forty() -> u32 {
    40
}

impl Words for New {
    const VERSION: u32 = 1;
    fn handle(self, _: &mut Context<'_, Listener<Self>>) -> Option<String> {
        let Self::Told { text, added } = self;
        Some(format!("{text} {added}"))
    }
}

#[derive(Serialize, Deserialize)]
struct NewTask {
    text: String,
    #[serde(default = "forty")]
    added: u32,
}

impl Task for NewTask {
    const NAME: &'static str = "work";
    type Owner = Listener<New>;
    fn step(&mut self, _: &StepContext<'_>) -> Progress {
        Progress::Done
    }
    fn finish(self) -> New {
        New::Told { text: self.text, added: self.added }
    }
}

/// A version that can read none of these messages.
#[derive(Serialize, Deserialize)]
enum Stranger {
    Unrelated,
}

impl Words for Stranger {
    const VERSION: u32 = 2;
    fn handle(self, _: &mut Context<'_, Listener<Self>>) -> Option<String> {
        let Self::Unrelated = self;
        Some("unrelated".to_owned())
    }
}

#[derive(Serialize, Deserialize)]
struct StrangeTask {
    number: u64,
}

impl Task for StrangeTask {
    const NAME: &'static str = "work";
    type Owner = Listener<Stranger>;
    fn step(&mut self, _: &StepContext<'_>) -> Progress {
        Progress::Done
    }
    fn finish(self) -> Stranger {
        Stranger::Unrelated
    }
}

fn builder<T: Task<Owner = Listener<W>>, W: Words>(dir: &Path) -> NodeBuilder {
    let options = ServiceOptions::default().shards(2);
    Node::builder(dir).service::<Listener<W>>(options).task::<T>().threads(2).segment_bytes(1 << 20)
}

/// Opens the node a day later, when what was set to an hour is due.
fn open_later<T: Task<Owner = Listener<W>>, W: Words>(dir: &Path) -> Node {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let later = Time((now + 24 * HOUR).as_micros() as u64);
    builder::<T, W>(dir).wall_clock(move || later).clock_confirm(Duration::ZERO).open().unwrap()
}

/// The keys of a sender and of a receiver on another shard.
fn keys(node: &Node) -> (String, String) {
    let service = node.topology().service_id("listener").unwrap();
    let on = |shard: u32| {
        let mut keys = (0..).map(|n| format!("p{n}"));
        keys.find(|key| node.topology().shard_of(service, key).0 == shard).unwrap()
    };
    (on(0), on(1))
}

/// Kills the old program while a message, a timer and a task wait.
fn leave_under_way(dir: &Path) -> (String, String) {
    let data = dir.join("data");
    let node = builder::<OldTask, Old>(&data).open().unwrap();
    let (sender, receiver) = keys(&node);
    let (entered, go) = (dir.join("entered"), dir.join("go"));
    let client = node.blocking_client();
    std::thread::scope(|scope| {
        let hold = Old::Hold { entered: entered.clone(), go: go.clone() };
        scope.spawn(|| client.call::<Listener<Old>>(&receiver, hold).unwrap_err());
        await_until("the shard is held", || entered.exists());
        client.call::<Listener<Old>>(&sender, Old::Spread { to: receiver.clone() }).unwrap();
        scope.spawn(|| node.kill());
        // The shard continues only when it is too late for it to receive the message.
        await_until("the node stops", || {
            client.query::<Listener<Old>>(&sender, ()) == Err(stead::CallError::Raw(RawError::Stopped))
        });
        std::fs::write(&go, "").unwrap();
    });
    (sender, receiver)
}

#[test]
fn what_is_under_way_is_read_by_a_version_that_changed_its_fields_and_names() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, receiver) = leave_under_way(dir.path());
    let node = open_later::<NewTask, New>(&dir.path().join("data"));
    let heard = |key: &String| {
        let mut heard = node.blocking_client().query::<Listener<New>>(key, ()).unwrap();
        heard.sort();
        heard
    };
    await_until("all are read", || {
        assert_eq!(node.dead_letters("listener", None, 1000).unwrap().dead_letters, []);
        heard(&sender).len() == 2 && !heard(&receiver).is_empty()
    });
    assert_eq!(heard(&sender), ["task 40", "timer 40"]);
    assert_eq!(heard(&receiver), ["message 40"]);
}

#[test]
fn what_can_not_be_read_is_kept_as_a_dead_letter_with_process_version_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, receiver) = leave_under_way(dir.path());
    let node = open_later::<StrangeTask, Stranger>(&dir.path().join("data"));
    let letters = await_some("three dead letters", || {
        let letters = node.dead_letters("listener", None, 1000).unwrap().dead_letters;
        (letters.len() == 3).then_some(letters)
    });
    for (process, cause, unreadable) in [
        (&sender, "timer", "unknown variant `Tell`"),
        (&sender, "step 0 of task", "missing field `number`"),
        (&receiver, "message", "unknown variant `Tell`"),
    ] {
        let letter = letters.iter().find(|letter| letter.cause.starts_with(cause)).unwrap();
        assert_eq!(letter.process, *process);
        for part in [format!("listener/{process}"), "version 2".to_owned(), unreadable.to_owned()] {
            assert!(letter.reason.contains(&part), "{part}: {letter:?}");
        }
        assert!(
            letter.payload.as_ref().unwrap().to_string().contains("text"),
            "nothing of it is lost: {letter:?}"
        );
    }
    // The service still works.
    node.blocking_client().call::<Listener<Stranger>>(&receiver, Stranger::Unrelated).unwrap();
    assert_eq!(node.blocking_client().query::<Listener<Stranger>>(&receiver, ()).unwrap(), ["unrelated"]);
}
