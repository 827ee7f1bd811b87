//! Ends of a node.

use super::*;
use crate::data::Data;
use crate::life::Life;
use crate::shared::Shared;

/// Gives all parts turns until the end of the node has come.
fn end(node: &mut stepped::Stepped<Stepped>) {
    for _ in 0..100 {
        let parts: Vec<PartId> = node.bells().map(|(part, _)| part).filter(|part| node.runs(*part)).collect();
        for part in parts {
            let ended = node.turn(part, node.shared.now()) == Ok(Turned::Ended);
            if ended && part == PartId::End {
                return;
            }
        }
        node.shared.clock.0.fetch_add(10_000, Ordering::Relaxed);
    }
    panic!("it never ends");
}

#[test]
fn a_life_whose_threads_cannot_all_start_has_not_ended_in_order() {
    let disk = SimDisk::new(5);
    let node = Node::open(&disk, 1);
    node.parts.life.kill();
    drop(node);
    assert!(!Node::ended_in_order(&disk), "it was killed");
    // All parts before the last one have begun.
    let mut node = open_stepped(&disk);
    while node.start(false).unwrap() != Started::Part(PartId::Checkpoints) {}
    for part in [PartId::Log, PartId::Worker(0), PartId::Worker(0)] {
        node.turn(part, node.shared.now()).unwrap();
    }
    assert!(matches!(node.start(true), Err(OpenError::Thread(_))));
    end(&mut node);
    drop(node);
    assert!(!Node::ended_in_order(&disk));
}

#[test]
fn a_node_that_failed_ends_at_once_and_is_not_marked_and_one_that_stops_is() {
    for fails in [true, false] {
        let disk = SimDisk::new(9);
        let mut node = start_stepped(&disk);
        if fails {
            node.fail(PartId::Preparer, "no more");
            assert_eq!(node.shared.failure(), Some("no more"));
            assert!(
                node.bells().all(|(part, _)| part != PartId::Preparer),
                "it is dropped, as by its thread"
            );
            // The worker has yet to start its shard, and never does.
            assert_eq!(node.turn(PartId::Worker(0), node.shared.now()), Ok(Turned::Ended));
            assert!(node.shared.watch.inputs.load(Ordering::Relaxed) == 0 && !node.runs(PartId::Worker(0)));
        }
        assert_eq!(node.shut_down(Duration::from_secs(1), None), EndOrder::Begin);
        end(&mut node);
        let left: Vec<PartId> = node.bells().map(|(part, _)| part).filter(|part| node.runs(*part)).collect();
        assert_eq!(left, [], "each part has ended");
        drop(node);
        assert_eq!(Node::ended_in_order(&disk), !fails);
    }
}

/// It is in a turn until the node has ended. Its own code may ask again, and must not wait.
#[test]
fn a_node_that_one_of_its_parts_ends_waits_for_the_others() {
    let disk = SimDisk::new(9);
    let mut node = start_stepped(&disk);
    let by = PartId::Worker(0);
    assert_eq!(node.shut_down(Duration::from_secs(1), Some(by)), EndOrder::Begin);
    assert_eq!(node.kill(Some(by)), EndOrder::Nothing);
    assert_eq!(node.shut_down(Duration::from_secs(1), None), EndOrder::Wait);
    let mut ended = false;
    for _ in 0..100 {
        let parts: Vec<PartId> = node.bells().map(|(part, _)| part).filter(|part| node.runs(*part)).collect();
        for part in parts.into_iter().filter(|part| *part != by) {
            ended |= node.turn(part, node.shared.now()) == Ok(Turned::Ended) && part == PartId::End;
        }
        if ended {
            break;
        }
        node.shared.clock.0.fetch_add(10_000, Ordering::Relaxed);
    }
    assert!(ended && node.runs(by));
    assert_eq!(node.shut_down(Duration::ZERO, None), EndOrder::Nothing);
    assert_eq!(
        node.turn(by, node.shared.now()),
        Ok(Turned::Ended),
        "its turn is over, and the node has ended"
    );
    drop(node);
    assert!(!Node::ended_in_order(&disk), "its code went on after the end, and may have ended the process");
}

/// The end does not wait for the worker of that handler, and another node may have the data already.
#[test]
fn after_a_handler_that_ends_the_node_no_other_handler_begins() {
    for (others, message) in [(&["c"][..], true), (&["c", "d"], false)] {
        let mut node = Node::open(&SimDisk::new(5), 1);
        node.settle();
        if message {
            // In the worker's next turn its message to `b` follows the requests.
            node.request(0, "a", b"b");
            node.work(0);
            node.log();
            node.log();
        }
        let (runs, shared) = (Rc::new(Cell::new(0)), Arc::clone(&node.parts.life.shared));
        let act = {
            let runs = Rc::clone(&runs);
            move || {
                runs.set(runs.get() + 1);
                shared.begin_end();
                shared.stop_all();
            }
        };
        IN_HANDLER.set(Some(Box::new(act)));
        for (number, key) in (1..).zip(others) {
            node.request(number, key, b"");
        }
        let turned = [node.work(0), node.work(0)];
        IN_HANDLER.set(None);
        assert_eq!(runs.get(), 1, "a message: {message}");
        assert_eq!(turned[1], Turned::Ended);
        let answers: Vec<_> = node.answers.lock().unwrap().drain(..).collect();
        let is_stopped = |(number, answer): &(u32, _)| *number == 0 || *answer == Err(NoAnswer::Stopped);
        assert!(answers.iter().all(is_stopped), "{answers:?}");
    }
}

/// It shortens the time for which the shutdown waits.
#[test]
fn a_kill_within_a_shutdown_that_waits_ends_the_node() {
    let disk = SimDisk::new(9);
    let mut node = start_stepped(&disk);
    node.shut_down(Duration::from_secs(3_600), None);
    assert_eq!(node.kill(None), EndOrder::Wait);
    end(&mut node);
    drop(node);
    assert!(!Node::ended_in_order(&disk));
}

#[test]
fn a_part_that_panics_fails_the_node_and_holds_no_call() {
    let disk = SimDisk::new(9);
    let mut node = start_stepped(&disk);
    for _ in 0..20 {
        for part in [PartId::Worker(0), PartId::Log] {
            node.turn(part, node.shared.now()).unwrap();
        }
    }
    let answers = Answers::default();
    let process = Key::new("a").unwrap();
    let shard = node.shared.topology.shard_of(ServiceId(0), &process);
    let query = Query {
        token: CallToken(0),
        process,
        payload: Blob::empty(),
        principal: "test".into(),
        read: Read::Service,
        seen: None,
    };
    let (timeout, deadline) = (Duration::from_secs(60), node.shared.now().plus_millis(60_000));
    let reply_to = ReplyTo { caller: Noting(1, Arc::clone(&answers)), deadline, timeout };
    node.shared.query(shard, query, reply_to).unwrap();
    node.shared.watch.panics.store(true, Ordering::Relaxed);
    assert!(node.turn(PartId::Worker(0), node.shared.now()).unwrap_err().contains("it is planted"));
    assert!(node.shared.failure().is_some_and(|failure| failure.contains("stead-worker-0 panicked")));
    assert!(!node.runs(PartId::Worker(0)));
    assert_eq!(Arc::strong_count(&answers), 1, "no call is held");
    node.shut_down(Duration::ZERO, None);
    end(&mut node);
    drop(node);
    assert!(!Node::ended_in_order(&disk));
}

/// However long: parts that have not ended may still change the data.
#[test]
fn the_end_of_a_node_waits_for_its_parts() {
    let disk = SimDisk::new(9);
    let mut node = start_stepped(&disk);
    node.shut_down(Duration::from_secs(1), None);
    for _ in 0..200 {
        let turned = node.turn(PartId::End, node.shared.now()).unwrap();
        assert_ne!(turned, Turned::Ended);
        if let Turned::Until(until) = turned {
            node.shared.clock.0.store(until.expect("it looks again").0, Ordering::Relaxed);
        }
    }
    assert!([PartId::Worker(0), PartId::Log, PartId::Checkpoints].iter().all(|part| node.runs(*part)));
    end(&mut node);
    drop(node);
    assert!(Node::ended_in_order(&disk));
}

/// A query that its shard has released is answered, although nothing more comes.
#[test]
fn the_end_of_a_node_waits_for_the_answers_of_queries() {
    let disk = SimDisk::new(9);
    let mut node = start_stepped(&disk);
    let answers = Answers::default();
    let rounds = |node: &mut stepped::Stepped<Stepped>| {
        for _ in 0..50 {
            let parts: Vec<PartId> = node.bells().map(|(part, _)| part).collect();
            for part in parts.into_iter().filter(|part| !matches!(part, PartId::Query(_))) {
                if node.runs(part) {
                    node.turn(part, node.shared.now()).unwrap();
                }
            }
        }
    };
    rounds(&mut node);
    let process = Key::new("a").unwrap();
    let shard = node.shared.topology.shard_of(ServiceId(0), &process);
    let query = Query {
        token: CallToken(0),
        process,
        payload: Blob::empty(),
        principal: "test".into(),
        read: Read::Service,
        seen: None,
    };
    let (timeout, deadline) = (Duration::from_secs(60), node.shared.now().plus_millis(60_000));
    let reply_to = ReplyTo { caller: Noting(1, Arc::clone(&answers)), deadline, timeout };
    node.shared.query(shard, query, reply_to).unwrap();
    rounds(&mut node);
    node.shut_down(Duration::ZERO, None);
    rounds(&mut node);
    assert!(!node.runs(PartId::Worker(0)) && answers.lock().unwrap().is_empty(), "no part runs the query");
    end(&mut node);
    let answered: Vec<_> = answers.lock().unwrap().drain(..).collect();
    assert!(matches!(answered.as_slice(), [(1, Ok(Answer { result: Ok(_), .. }))]), "{answered:?}");
}

/// It is then unknown whether the store has written anything.
#[test]
fn data_whose_store_has_failed_are_not_marked_as_of_a_clean_end() {
    for fails in [true, false] {
        let disk = SimDisk::new(9);
        let node = Node::open(&disk, 1);
        let life = &node.parts.life;
        disk.fail_syncs(u32::from(fails));
        assert_eq!(life.store.put_new("checks/object", b"bytes").is_err(), fails);
        life.data.mark_clean(&life.shared.checks.marks);
        drop(node);
        assert_eq!(Node::ended_in_order(&disk), !fails);
    }
}

#[test]
fn a_node_that_ends_or_has_failed_takes_no_call() {
    for has_failed in [false, true] {
        let disk = SimDisk::new(5);
        let mut node = Node::open(&disk, 1);
        node.settle();
        let shared = &node.parts.life.shared;
        let reason = if has_failed {
            shared.fail("it is broken".to_owned());
            NoAnswer::Failed("it is broken".to_owned())
        } else {
            shared.begin_end();
            NoAnswer::Stopped
        };
        assert_eq!(node.try_request(1, "a", b""), Err(reason));
        node.parts.life.kill();
    }
}

#[test]
fn a_node_whose_parts_never_ran_leaves_its_data_as_after_a_crash() {
    let disk = SimDisk::new(5);
    let begun = Instant::now();
    let node = Node::open(&disk, 1);
    node.parts.life.shutdown(Duration::from_secs(3_600));
    assert_eq!(node.try_request(1, "a", b""), Err(NoAnswer::Stopped));
    drop(node);
    let node = Node::open(&disk, 1);
    drop(node);
    assert!(begun.elapsed() < Duration::from_secs(60), "it waited for parts that do not run");
    let (data_dir, _) = DataDir::open(Arc::new(disk), || unreachable!("it exists")).unwrap();
    assert!(!data_dir.meta().clean, "its log has no last mark");
}

/// A store that notes whether the data directory could be released during each change, and ends the node once a check has begun.
struct Guards {
    store: Arc<dyn BlobStore>,
    data: Arc<Data>,
    /// The node to end.
    ends: Option<Arc<Shared<Stepped>>>,
    /// The names of changed objects, each with whether the directory was held.
    changes: Mutex<Vec<(String, bool)>>,
}

impl Guards {
    fn note(&self, name: &str) {
        let is_held = self.data.dir.try_lock().is_err();
        self.changes.lock().unwrap().push((name.to_owned(), is_held));
    }

    fn changed(&self) -> Vec<String> {
        let changes = std::mem::take(&mut *self.changes.lock().unwrap());
        assert!(changes.iter().all(|(_, is_held)| *is_held), "{changes:?}");
        changes.into_iter().map(|(name, _)| name).collect()
    }

    /// Puts it before the store of a life.
    fn put_before(life: &mut Life<Stepped>, ends: bool) -> Arc<Self> {
        let ends = ends.then(|| Arc::clone(&life.shared));
        let (store, data) = (Arc::clone(&life.store), Arc::clone(&life.data));
        let guards = Arc::new(Self { store, data, ends, changes: Mutex::default() });
        life.store = Arc::clone(&guards) as Arc<dyn BlobStore>;
        guards
    }
}

impl BlobStore for Guards {
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        self.note(name);
        let put = self.store.put_new(name, bytes);
        if let Some(shared) = &self.ends {
            shared.kill(Time(0));
        }
        put
    }

    fn create(&self, name: &str) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.store.create(name)
    }

    fn open(&self, name: &str) -> Result<Box<dyn BlobReader>, StoreError> {
        self.store.open(name)
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, StoreError> {
        self.store.list(dir)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.note(name);
        self.store.delete(name)
    }
}

/// Another life may own the data directory once this one has ended.
#[test]
fn operators_change_nothing_after_the_end_of_the_node_nor_across_it() {
    let is_stopped = |failure: CheckpointFailure| matches!(failure, CheckpointFailure::Stopped(_));
    for is_killed in [true, false] {
        let disk = SimDisk::new(5);
        let mut node = Node::open(&disk, 1);
        assert_eq!((node.take_checkpoint(), node.take_checkpoint(), node.take_checkpoint()), (1, 2, 3));
        let life = &mut node.parts.life;
        let guards = Guards::put_before(life, false);
        life.delete_checkpoint(1).unwrap();
        assert!(life.verify(2).unwrap().holds());
        assert!(guards.changed().len() >= 4, "the manifest, the mark twice, and the results");
        let (mut deletion, mut verification) = (Deletion::begin(2), Verification::begin(life, 2));
        let mut late = Verification::begin(life, 3);
        assert!(!deletion.step(life).unwrap());
        assert!(verification.step(life).unwrap().is_none());
        guards.changed();
        if is_killed {
            life.kill();
        } else {
            life.shared.begin_end();
            life.shared.stop_all();
        }
        assert!(is_stopped(deletion.step(life).unwrap_err()));
        assert!(is_stopped(verification.step(life).unwrap_err()));
        assert!(is_stopped(late.step(life).unwrap_err()));
        assert!(is_stopped(life.delete_checkpoint(2).unwrap_err()));
        assert!(is_stopped(life.verify(3).unwrap_err()));
        assert_eq!(guards.changed(), Vec::<String>::new());
        life.kill();
    }
}

#[test]
fn a_verification_in_which_the_node_ends_changes_nothing_more() {
    let disk = SimDisk::new(5);
    let mut node = Node::open(&disk, 1);
    assert_eq!(node.take_checkpoint(), 1);
    let life = &mut node.parts.life;
    let guards = Guards::put_before(life, true);
    let stopped = life.verify(1).unwrap_err();
    assert_eq!(stopped, CheckpointFailure::Stopped("the node has stopped".to_owned()));
    assert_eq!(guards.changed().len(), 1, "the mark of its check, which stays as after a crash");
    life.kill();
}
