//! The suite of the stores against a real server with the S3 protocol; `scripts/s3-server.sh` installs it.

#[path = "s3_server.rs"]
mod s3_server;

use super::stores::{suite, suite_of_parts};
use s3_server::S3Server;
use std::sync::Arc;
use stead_store::checkpoint::remote;
use stead_store::checkpoint::store::{BlobStore, Put};

#[test]
fn s3() {
    let Some(server) = S3Server::start() else { return };
    server.create_bucket("stead");
    let endpoint = format!("http://127.0.0.1:{}", server.port);
    let options = [
        ("endpoint", endpoint.as_str()),
        ("region", "us-east-1"),
        ("access_key_id", "a"),
        ("secret_access_key", "b"),
        ("allow_http", "true"),
    ];
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let open = |prefix: &str| remote::open(&format!("s3://stead/{prefix}"), &options).unwrap();
    suite_of_parts(&*open("parts"));
    suite(&*open("some/where"));
    suite(&*open(""));
    // Of many concurrent creations of one object, exactly one succeeds, in each round.
    let stores: Vec<Arc<dyn BlobStore>> = (0..8).map(|_| open("races")).collect();
    for round in 0..10 {
        let name = format!("manifests/{round}");
        let created = std::thread::scope(|scope| {
            let racers: Vec<_> = stores
                .iter()
                .enumerate()
                .map(|(racer, store)| {
                    let name = &name;
                    scope.spawn(move || store.put_new(name, racer.to_string().as_bytes()).unwrap())
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).filter(|put| *put == Put::Created).count()
        });
        assert_eq!(created, 1, "round {round}");
    }
}
