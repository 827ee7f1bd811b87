//! State and messages of older versions of a service.

use crate::services::key;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::marker::PhantomData;
use std::path::Path;
use stead::{CallError, Context, Never, Node, Process, QueryContext, RawError, Refusal, ServiceOptions};

/// One version of a service: its state, and how it reads older ones.
trait Version: Serialize + DeserializeOwned + Default + Send + 'static {
    const NUMBER: u32;
    fn set(&mut self, name: &str);
    fn show(&self) -> String;
    fn migrate(version: u32, _: &[u8]) -> Result<Self, String> {
        Err(format!("version {version} was before our time"))
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(transparent, bound = "V: Version")]
struct Person<V: Version> {
    version: V,
    #[serde(skip)]
    _version: PhantomData<V>,
}

#[derive(Serialize, Deserialize)]
enum Ask {
    #[serde(alias = "Name")]
    Rename(String),
}

impl<V: Version> Process for Person<V> {
    const SERVICE: &'static str = "person";
    const VERSION: u32 = V::NUMBER;
    type Key = String;
    type Request = Ask;
    type Reply = String;
    type Error = Never;
    type Query = ();
    type Answer = String;

    fn handle(&mut self, _: &mut Context<'_, Self>, Ask::Rename(name): Ask) -> Result<String, Never> {
        self.version.set(&name);
        Ok(self.version.show())
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<String, Never> {
        Ok(self.version.show())
    }

    fn migrate(version: u32, bytes: &[u8]) -> Result<Self, String> {
        Ok(Self { version: V::migrate(version, bytes)?, _version: PhantomData })
    }
}

#[derive(Default, Serialize, Deserialize)]
struct First {
    name: String,
    gone: u32,
    mood: Mood,
}

#[derive(Default, Debug, Serialize, Deserialize)]
enum Mood {
    #[default]
    Fine,
}

impl Version for First {
    const NUMBER: u32 = 1;
    fn set(&mut self, name: &str) {
        (self.name, self.gone) = (name.to_owned(), 7);
    }
    fn show(&self) -> String {
        format!("{} {:?}", self.name, self.mood)
    }
}

/// A field was added, one removed, and a variant renamed.
#[derive(Default, Serialize, Deserialize)]
struct Second {
    name: String,
    #[serde(default = "forty")]
    added: u32,
    mood: NewMood,
}

fn forty() -> u32 {
    40
}

#[derive(Default, Debug, Serialize, Deserialize)]
enum NewMood {
    #[default]
    #[serde(alias = "Fine")]
    Splendid,
}

impl Version for Second {
    const NUMBER: u32 = 1;
    fn set(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }
    fn show(&self) -> String {
        format!("{} {} {:?}", self.name, self.added, self.mood)
    }
}

/// Another shape altogether, which reads the first by its migration.
#[derive(Default, Serialize, Deserialize)]
struct Third {
    names: Vec<String>,
}

impl Version for Third {
    const NUMBER: u32 = 2;
    fn set(&mut self, name: &str) {
        self.names.push(name.to_owned());
    }
    fn show(&self) -> String {
        self.names.join("+")
    }
    fn migrate(version: u32, bytes: &[u8]) -> Result<Self, String> {
        let old: First =
            stead::codec::decode(bytes, "the state", "person").map_err(|error| error.to_string())?;
        assert_eq!(version, 1);
        Ok(Self { names: vec![old.name] })
    }
}

/// A shape that cannot read the others.
#[derive(Default, Serialize, Deserialize)]
struct Stranger {
    number: u64,
}

impl Version for Stranger {
    const NUMBER: u32 = 1;
    fn set(&mut self, _: &str) {
        self.number += 1;
    }
    fn show(&self) -> String {
        self.number.to_string()
    }
}

fn open<V: Version>(dir: &Path) -> Node {
    let options = ServiceOptions::default().shards(1);
    Node::builder(dir).service::<Person<V>>(options).segment_bytes(1 << 20).open().unwrap()
}

fn show<V: Version>(node: &Node) -> Result<String, CallError<Never>> {
    node.blocking_client().query::<Person<V>>(&key("p"), ())
}

fn refusal<T>(result: Result<T, CallError<Never>>) -> String {
    match result {
        Err(CallError::Raw(RawError::Refused(refusal @ Refusal::Misuse(_)))) => refusal.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("the state was read"),
    }
}

#[test]
fn fields_come_and_go_variants_are_renamed_and_the_rest_is_migrated_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rename = |name: &str| Ask::Rename(name.to_owned());
    let node = open::<First>(dir.path());
    node.blocking_client().call::<Person<First>>(&key("p"), rename("ada")).unwrap();
    node.shutdown();

    let node = open::<Second>(dir.path());
    assert_eq!(show::<Second>(&node).unwrap(), "ada 40 Splendid");
    node.shutdown();

    // Calls and queries are refused with process, version and reason, and the state stays unchanged.
    let node = open::<Stranger>(dir.path());
    for _ in 0..2 {
        let refused = refusal(node.blocking_client().call::<Person<Stranger>>(&key("p"), rename("x")));
        assert!(
            refused.contains("person/p") && refused.contains("version 1") && refused.contains("number"),
            "{refused}"
        );
        refusal(show::<Stranger>(&node));
    }
    node.shutdown();

    let node = open::<Third>(dir.path());
    assert_eq!(show::<Third>(&node).unwrap(), "ada");
    assert_eq!(node.blocking_client().call::<Person<Third>>(&key("p"), rename("eve")).unwrap(), "ada+eve");
    node.shutdown();

    let node = open::<First>(dir.path());
    let refused = refusal(show::<First>(&node));
    assert!(refused.contains("a newer version wrote it"), "{refused}");
}
