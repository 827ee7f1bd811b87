//! Transcripts of the driver of checkpoints: `testdata/checkpointing/*.txt` has the inputs and, indented, the driver's
//! actions. With `STEAD_TRANSCRIPTS=write` the expected part is rewritten.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;
use stead_core::checkpointing::bundle::{Author, BundleNames, BundleRef, Hash};
use stead_core::checkpointing::driver::{Action, Burial, Driver, Input, LogSpace, Options, Recovered};
use stead_core::checkpointing::lineage::{AddedSection, Lineage, Merged, MergedSection};
use stead_core::checkpointing::merging::{Merge, Policy, plan, renewals};
use stead_core::checkpointing::retention::{Garbage, Inventory};
use stead_core::ids::{CheckpointNumber, ClusterId, Epoch, Index, NodeId, ShardId, Time};

/// A driver, and the simulated store.
struct Script {
    driver: Driver,
    /// The shards at the beginning, each with its epoch.
    epochs: BTreeMap<ShardId, Epoch>,
    bundles: BTreeSet<String>,
    decided: BTreeMap<CheckpointNumber, Option<Vec<String>>>,
    /// The shards of each checkpoint that was begun.
    parts: BTreeMap<CheckpointNumber, Vec<ShardId>>,
    created: BTreeMap<CheckpointNumber, String>,
    sealed: BTreeMap<CheckpointNumber, Lineage>,
    merges: Vec<(String, Merge, Lineage)>,
    deleting: Vec<Garbage>,
    pinned: BTreeSet<CheckpointNumber>,
}

/// Returns the number and the serial number of a bundle's name.
fn short(name: &str) -> String {
    let mut parts = name.trim_start_matches("bundles/").trim_end_matches(".bundle").split('-');
    let mut number = || parts.next().unwrap_or_default().trim_start_matches('0').to_owned();
    let (checkpoint, _, _, serial) = (number(), number(), number(), number());
    format!("{checkpoint}.{}", if serial.is_empty() { "0" } else { &serial })
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// Parses the values of words like `keep=3`.
fn option<T: std::str::FromStr>(words: &[&str], name: &str) -> Option<T> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).map(number)
}

fn bundle(name: &str, bytes: u64, level: u32) -> BundleRef {
    BundleRef { name: name.to_owned(), node: NodeId::FIRST, bytes, level, index: Hash(1) }
}

impl Script {
    /// `node shards=2 led=2 elsewhere=1 decided=0 seen=0 interval=60 timeout=10 keep=1 grace=0 fan-in=2`: the node leads
    /// the first ones of the shards, and another node has one, or none.
    fn new(words: &[&str]) -> Self {
        let seconds = |name| option(words, name).map(Duration::from_secs);
        let shards: u32 = option(words, "shards").unwrap_or(2);
        let (decided, seen) = (option(words, "decided").unwrap_or(0), option(words, "seen").unwrap_or(0));
        let policy = Policy {
            fan_in: option(words, "fan-in").unwrap_or(100),
            growth: 1_000_000,
            renewal: option(words, "renewal").unwrap_or(1_000_000),
            growth_bytes_min: 1,
            ..Policy::default()
        };
        let options = Options {
            interval: seconds("interval"),
            timeout: seconds("timeout").unwrap_or(Duration::from_secs(100)),
            keep: option(words, "keep").unwrap_or(1),
            elsewhere: option(words, "elsewhere").map(ShardId).into_iter().collect(),
            grace: seconds("grace").unwrap_or_default(),
            policy,
        };
        let mut lineage = Lineage::new();
        let (mut bundles, mut decisions, mut parts) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        let names = BundleNames::new(Author { cluster: ClusterId(1), node: NodeId::FIRST, writer: 1 });
        if decided > 0 {
            let name = names.draw(CheckpointNumber(decided));
            let all = (0..shards).map(|shard| (ShardId(shard), AddedSection { base: true, bytes: 100 }));
            lineage.append(&bundle(&name, 200, 0), all);
            bundles.insert(name.clone());
            decisions.insert(CheckpointNumber(decided), Some(vec![name]));
            parts.insert(CheckpointNumber(decided), (0..shards).map(ShardId).collect());
        }
        let led = option(words, "led").unwrap_or(shards);
        let epochs: BTreeMap<_, _> = (0..led).map(|shard| (ShardId(shard), Epoch(1))).collect();
        let recovered =
            Recovered { lineage, decided: CheckpointNumber(decided), seen: CheckpointNumber(seen) };
        Self {
            driver: Driver::new(Time(0), options, names, epochs.clone(), recovered),
            epochs,
            bundles,
            decided: decisions,
            parts,
            created: BTreeMap::new(),
            sealed: BTreeMap::new(),
            merges: Vec::new(),
            deleting: Vec::new(),
            pinned: BTreeSet::new(),
        }
    }

    /// Returns the lineage with a bundle of these sections: `0=100` or, of all records, `0=100!`.
    fn seal(&mut self, checkpoint: CheckpointNumber, words: &[&str]) -> Lineage {
        let name = self.created[&checkpoint].clone();
        let sections = words.iter().map(|word| {
            let (shard, bytes) = word.split_once('=').expect("a section is SHARD=BYTES");
            let base = bytes.ends_with('!');
            let bytes = number(bytes.trim_end_matches('!'));
            (ShardId(number(shard)), AddedSection { base, bytes })
        });
        let mut lineage = self.driver.lineage().clone();
        lineage.append(&bundle(&name, 1000, 0), sections);
        self.bundles.insert(name);
        self.sealed.insert(checkpoint, lineage.clone());
        lineage
    }

    fn complete(&mut self, checkpoint: CheckpointNumber) {
        let bundles = self.sealed[&checkpoint].bundles().iter().map(|bundle| bundle.name.clone());
        self.decided.insert(checkpoint, Some(bundles.collect()));
    }

    /// The shards of each checkpoint that exists.
    fn parts_of_complete(&self) -> BTreeMap<CheckpointNumber, Vec<ShardId>> {
        let is_complete = |number: &CheckpointNumber| matches!(self.decided.get(number), Some(Some(_)));
        self.parts.clone().into_iter().filter(|(number, _)| is_complete(number)).collect()
    }

    fn merged(&mut self) -> Merged {
        let (output, merge, lineage) = self.merges.remove(0);
        let inputs: BTreeSet<String> = merge.inputs.iter().map(|bundle| bundle.name.clone()).collect();
        let is_input = |at: u32| inputs.contains(&lineage.bundles()[at as usize].name);
        let sections = lineage.shards().filter_map(|(shard, sections)| {
            let went_in: Vec<_> = sections.iter().filter(|section| is_input(section.bundle)).collect();
            let merged = MergedSection {
                sources: went_in.len(),
                oldest: is_input(sections[0].bundle),
                bytes: went_in.iter().map(|section| section.bytes).sum(),
            };
            (!went_in.is_empty()).then_some((shard, merged))
        });
        let sections = sections.collect();
        self.bundles.insert(output.clone());
        Merged { bundle: bundle(&output, merge.bytes, merge.level), inputs, sections }
    }

    fn delete(&mut self) {
        for garbage in self.deleting.drain(..) {
            match garbage {
                Garbage::Checkpoint(number) | Garbage::Tombstone(number) => {
                    assert!(self.decided.remove(&number).is_some(), "{number} is not there");
                }
                Garbage::Results(_) => {}
                Garbage::Bundle(name) => {
                    assert!(self.bundles.remove(&name), "{name} is not there");
                    let needed = self.decided.values().flatten().any(|bundles| bundles.contains(&name));
                    assert!(!needed, "{name} is needed");
                }
            }
        }
    }

    /// Parses the input of a line: its time in seconds, and words.
    fn input(&mut self, words: &[&str]) -> Input {
        let shard_of = |word: &str| ShardId(number(word));
        let reason = || "a test".to_owned();
        match words {
            ["tick"] => Input::Tick,
            ["wanted"] => Input::Wanted,
            ["interval", "none"] => Input::Interval(None),
            ["interval", seconds] => Input::Interval(Some(Duration::from_secs(number(seconds)))),
            ["log", "spent"] => Input::LogSpace(LogSpace::Spent),
            ["log", "full"] => Input::LogSpace(LogSpace::Full),
            ["log", "has", "room"] => Input::LogSpace(LogSpace::Enough),
            ["shard", shard, "leads", epoch] => {
                let epoch = Epoch(option(&[epoch], "epoch").expect("an epoch"));
                Input::Leads { shard: shard_of(shard), epoch }
            }
            ["shard", shard, "left"] => Input::Left(shard_of(shard)),
            ["created", checkpoint] => Input::Created(CheckpointNumber(number(checkpoint))),
            ["shard", shard, "marked", checkpoint, rest @ ..] => Input::Marked {
                shard: shard_of(shard),
                number: CheckpointNumber(number(checkpoint)),
                epoch: Epoch(option(rest, "epoch").unwrap_or(1)),
                index: Index(option(rest, "index").unwrap_or(1)),
                all: rest.contains(&"all"),
            },
            ["shard", shard, "written", checkpoint] => {
                Input::PartWritten { shard: shard_of(shard), number: CheckpointNumber(number(checkpoint)) }
            }
            ["shard", shard, "committed", checkpoint] => Input::MarkerCommitted {
                shard: shard_of(shard),
                number: CheckpointNumber(number(checkpoint)),
            },
            ["failed", checkpoint] => {
                Input::Failed { number: CheckpointNumber(number(checkpoint)), reason: reason() }
            }
            ["sealed", checkpoint, sections @ ..] => {
                let number = CheckpointNumber(number(checkpoint));
                Input::Sealed { number, lineage: self.seal(number, sections) }
            }
            ["stored", checkpoint] => {
                let number = CheckpointNumber(number(checkpoint));
                self.complete(number);
                Input::Stored(number)
            }
            ["store", "failed", checkpoint, rest @ ..] => Input::StoreFailed {
                number: CheckpointNumber(number(checkpoint)),
                reason: reason(),
                may_exist: rest.contains(&"perhaps"),
            },
            ["buried", checkpoint] => {
                let number = CheckpointNumber(number(checkpoint));
                self.decided.insert(number, None);
                Input::Buried { number, burial: Burial::Tombstone }
            }
            ["found", checkpoint] => {
                let number = CheckpointNumber(number(checkpoint));
                self.complete(number);
                Input::Buried { number, burial: Burial::Complete }
            }
            ["not", "buried", checkpoint] => {
                Input::Buried { number: CheckpointNumber(number(checkpoint)), burial: Burial::Unknown }
            }
            ["looked", pinned @ ..] => {
                self.pinned = pinned.iter().map(|number| CheckpointNumber(self::number(number))).collect();
                let inventory = Inventory {
                    bundles: self.bundles.iter().cloned().collect(),
                    decided: self.decided.clone(),
                    parts: self.parts_of_complete(),
                    results: Vec::new(),
                };
                Input::Inventory { inventory, pinned: self.pinned.clone() }
            }
            ["deleted"] => {
                self.delete();
                Input::Deleted
            }
            ["collect", "failed"] => Input::CollectFailed,
            ["merged"] => Input::Merged(Some(self.merged())),
            ["merge", "failed"] => {
                self.merges.remove(0);
                Input::Merged(None)
            }
            _ => panic!("unknown words {words:?}"),
        }
    }

    /// Formats an action of the driver in words.
    fn action(&mut self, action: Action) -> String {
        match action {
            Action::Create { number, bundle, parts } => {
                let mut text = format!("create {number}, bundle {}", short(&bundle));
                if parts != self.epochs {
                    let of: Vec<_> = parts
                        .iter()
                        .map(|(shard, epoch)| format!("shard {shard} in epoch {epoch}"))
                        .collect();
                    let of = if of.is_empty() { "no shard".to_owned() } else { of.join(", ") };
                    let _ = write!(text, ", of {of}");
                }
                self.created.insert(number, bundle);
                self.parts.insert(number, parts.into_keys().collect());
                text
            }
            Action::ForceFull(shards) => {
                format!("force full {:?}", shards.iter().map(|s| s.0).collect::<Vec<_>>())
            }
            Action::Colour(number) => format!("colour {number}"),
            Action::Discard { shard, number } => format!("discard the part of shard {shard} of {number}"),
            Action::Seal(number) => format!("seal {number}"),
            Action::StoreManifest(number) => format!("store the manifest of {number}"),
            Action::Bury { number, reason } => format!("bury {number}: {reason}"),
            Action::Completed(number) => format!("completed {number}"),
            Action::GivenUp { number, reason } => format!("given up {number}: {reason}"),
            Action::Refuse => "refuse".to_owned(),
            Action::Trim(tops) => {
                let tops = tops.iter().map(|(shard, index)| format!("shard {shard} up to {index}"));
                format!("trim {}", tops.collect::<Vec<_>>().join(", "))
            }
            Action::Look => "look".to_owned(),
            Action::Delete(garbage) => {
                let names = garbage.iter().map(|garbage| match garbage {
                    Garbage::Checkpoint(number) => format!("checkpoint {number}"),
                    Garbage::Tombstone(number) => format!("tombstone {number}"),
                    Garbage::Results(name) => name.clone(),
                    Garbage::Bundle(name) => format!("bundle {}", short(name)),
                });
                let text = format!("delete {}", names.collect::<Vec<_>>().join(", "));
                self.deleting = garbage;
                text
            }
            Action::Merge { output, merge, .. } => {
                let inputs: Vec<_> = merge.inputs.iter().map(|bundle| short(&bundle.name)).collect();
                let text = format!("merge {} into {}", inputs.join(" + "), short(&output));
                self.merges.push((output, merge, self.driver.lineage().clone()));
                text
            }
        }
    }
}

/// Plays the inputs of a transcript, and writes the driver's actions under each.
fn play(text: &str) -> String {
    let mut script: Option<Script> = None;
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.starts_with(' ')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let _ = writeln!(out, "{line}");
        match words.as_slice() {
            [] | ["#", ..] => continue,
            ["node", rest @ ..] => script = Some(Script::new(rest)),
            [time, rest @ ..] => {
                let script = script.as_mut().expect("a transcript begins with its node");
                let now = Time(number::<u64>(time.trim_end_matches('s')) * 1_000_000);
                let input = script.input(rest);
                script.driver.handle(now, input);
            }
        }
        let script = script.as_mut().expect("made above");
        while let Some(action) = script.driver.poll_action() {
            let _ = writeln!(out, "    {}", script.action(action));
        }
    }
    out
}

fn transcript(name: &str) {
    let path = format!("{}/tests/testdata/checkpointing/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let expected = std::fs::read_to_string(&path).expect("the transcript is there");
    let played = play(&expected);
    if std::env::var_os("STEAD_TRANSCRIPTS").is_some_and(|value| value == "write") {
        std::fs::write(&path, played).expect("the transcript can be written");
    } else {
        assert_eq!(played, expected, "{path}");
    }
}

#[test]
fn a_checkpoint_exists_once_every_part_is_durable_and_every_marker_committed() {
    transcript("complete");
}

#[test]
fn a_checkpoint_that_fails_or_takes_too_long_is_given_up() {
    transcript("give_up");
}

#[test]
fn the_markers_on_their_way_to_a_slow_log_are_bounded() {
    transcript("slow_log");
}

#[test]
fn a_colour_above_the_running_number_gives_that_up_at_once() {
    transcript("higher_colour");
}

#[test]
fn a_part_counts_only_upon_a_checkpoint_and_in_the_epoch_of_its_shard() {
    transcript("parts");
}

#[test]
fn a_manifest_that_exists_after_a_failed_store_is_a_checkpoint() {
    transcript("store_failed");
}

#[test]
fn what_is_in_use_is_not_deleted() {
    transcript("collect");
}

#[test]
fn a_merge_waits_for_a_sealed_checkpoint() {
    transcript("merge");
}

#[test]
fn undecided_numbers_are_given_up_at_the_start() {
    transcript("start");
}

#[test]
fn a_checkpoint_needs_the_shards_that_are_led_here() {
    transcript("shards");
}

#[test]
fn the_newest_part_of_a_shard_that_is_not_placed_is_kept() {
    transcript("unplaced");
}

#[test]
fn the_parts_of_a_shard_elsewhere_are_not_kept() {
    transcript("elsewhere");
}

#[test]
#[should_panic(expected = "shard 0 falls from epoch 1 to 0")]
fn the_epoch_of_a_shard_never_falls() {
    let mut driver = Script::new(&["shards=1"]).driver;
    driver.handle(Time(0), Input::Leads { shard: ShardId(0), epoch: Epoch(0) });
}

#[test]
fn the_driver_wants_a_tick_when_one_is_due_or_has_to_be_given_up() {
    let mut driver = Script::new(&["shards=1", "interval=60", "timeout=10"]).driver;
    let seconds = |seconds: u64| Time(seconds * 1_000_000);
    assert_eq!(driver.deadline(), Some(seconds(60)));
    driver.handle(seconds(60), Input::Tick);
    assert_eq!((driver.running(), driver.deadline()), (Some(CheckpointNumber(1)), Some(seconds(70))));
    driver.handle(seconds(70), Input::Tick);
    assert_eq!(driver.deadline(), None, "its tombstone is written");
    driver.handle(seconds(71), Input::Buried { number: CheckpointNumber(1), burial: Burial::Tombstone });
    assert_eq!((driver.running(), driver.deadline()), (None, Some(seconds(120))));
}

#[test]
fn a_bundle_that_outweighs_the_newer_ones_of_its_level_is_not_merged_with_them() {
    let policy = Policy { fan_in: 2, growth_bytes_min: u64::MAX, ..Policy::default() };
    let merged = |bytes: &[u64]| {
        let mut lineage = Lineage::new();
        for (at, &bytes) in bytes.iter().enumerate() {
            let section = AddedSection { base: at == 0, bytes };
            lineage.append(&bundle(&at.to_string(), bytes, 0), [(ShardId(0), section)]);
        }
        let merge = plan(&lineage, &policy)?;
        Some((merge.inputs.into_iter().map(|bundle| bundle.name).collect::<Vec<_>>().concat(), merge.bytes))
    };
    assert_eq!(merged(&[1000, 600, 500]), Some(("012".to_owned(), 2100)));
    assert_eq!(merged(&[1000, 5, 10]), Some(("12".to_owned(), 15)));
    assert_eq!(merged(&[1000, 10, 5]), None);
}

#[test]
fn renewals_add_no_more_bytes_than_their_budget_but_for_the_first() {
    let mut lineage = Lineage::new();
    // By shard: each is due, the first one most. A renewal adds the oldest bytes but those that would change anyway.
    let sections = [[100, 80, 60], [100, 70, 50], [100, 60, 45]];
    for at in 0..3 {
        let added =
            (0..).map(ShardId).zip(sections.map(|bytes| AddedSection { base: at == 0, bytes: bytes[at] }));
        lineage.append(&bundle(&at.to_string(), 1000, 0), added);
    }
    let due = |renewal_budget| {
        let policy = Policy { renewal_budget, growth_bytes_min: 0, ..Policy::default() };
        renewals(&lineage, &policy)
    };
    assert_eq!(due(0), [ShardId(0)]);
    assert_eq!(due(29), [ShardId(0)]);
    assert_eq!(due(30), [ShardId(0), ShardId(1)]);
    assert_eq!(due(100), [ShardId(0), ShardId(1), ShardId(2)]);
}

#[test]
fn a_bundle_is_named_by_its_checkpoint_its_node_its_writer_and_a_serial_number() {
    let author = Author { cluster: ClusterId(1), node: NodeId(12), writer: 0xab };
    let names = BundleNames::new(author);
    assert_eq!(names.author(), author);
    let drawn = [3, 3].map(|number| names.draw(CheckpointNumber(number)));
    let name = |serial| format!("bundles/{:020}-0012-{:016x}-{serial:06}.bundle", 3, 0xab);
    assert_eq!(drawn, [name(0), name(1)]);
}
