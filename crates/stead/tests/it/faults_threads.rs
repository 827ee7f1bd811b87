//! Threads of a node that wait for each other: none of them may wait for ever.

use crate::services::builder;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use stead::{CheckpointOptions, Context, Never, Process, QueryContext, ServiceOptions};
use stead_store::sim_disk::SimDisk;

/// Much state in few records, so that a test has it at once.
#[derive(Default, Serialize, Deserialize)]
struct Bulk {
    text: String,
}

impl Process for Bulk {
    const SERVICE: &'static str = "bulk";
    type Key = String;
    type Request = usize;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = usize;

    fn handle(&mut self, _: &mut Context<'_, Self>, bytes: usize) -> Result<(), Never> {
        self.text = "x".repeat(bytes);
        Ok(())
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<usize, Never> {
        Ok(self.text.len())
    }
}

#[test]
fn a_checkpoint_of_more_state_than_may_wait_completes_on_an_idle_node() {
    let options = CheckpointOptions {
        interval: None,
        // What the first shard hands over is still being written when the worker has handed over too much.
        bytes_per_second: 80 << 20,
        timeout: Duration::from_secs(3),
        ..Default::default()
    };
    let node = builder(Path::new("unused"))
        .service::<Bulk>(ServiceOptions::default().shards(3))
        .threads(1)
        .segment_bytes(48 << 20)
        .checkpoints(options)
        .disk(Arc::new(SimDisk::new(1)))
        .open()
        .unwrap();
    let service = node.topology().service_id("bulk").unwrap();
    let first = node.topology().service(service).first.0;
    for (shard, bytes) in (first..).zip([4 << 20, 17 << 20, 1 << 20]) {
        let mut keys = (0..).map(|n| n.to_string());
        let key = keys.find(|key| node.topology().shard_of(service, key).0 == shard).unwrap();
        node.blocking_client().call::<Bulk>(&key, bytes).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let report = runtime.block_on(node.checkpoint_unchecked()).unwrap();
    assert!(report.bytes_total > 22 << 20, "{report:?}");
}
