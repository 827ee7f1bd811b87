//! The suite of the stores against a real server that speaks S3's language; `scripts/s3-server.sh` installs it.

use super::stores::{suite, suite_of_parts};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use stead_store::checkpoint::remote::RemoteStore;
use stead_store::checkpoint::store::{BlobStore, Put};

/// A server that ends with the test.
struct S3Server {
    process: Child,
    port: u16,
}

impl S3Server {
    /// `None` if it is not installed.
    fn start() -> Option<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
        let program = target.join("s3-venv/bin/moto_server");
        if !program.exists() {
            return None;
        }
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", "0"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().expect("it tells its port before it ends").unwrap();
            if let Some((_, port)) = line.rsplit_once("http://127.0.0.1:") {
                break port.trim().parse().unwrap();
            }
        };
        // It writes a line for each request, and would stop when nobody reads them.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { process, port })
    }

    fn create_bucket(&self, name: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(
            stream,
            "PUT /{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn s3() {
    let Some(server) = S3Server::start() else {
        let required = std::env::var("STEAD_REQUIRE_S3").is_ok_and(|value| value == "1");
        assert!(!required, "no S3 server is installed: run scripts/s3-server.sh");
        println!("SKIPPED: no S3 server is installed; scripts/s3-server.sh installs one");
        return;
    };
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
    let open = |prefix: &str| RemoteStore::open(&format!("s3://stead/{prefix}"), &options).unwrap();
    suite_of_parts(&open("parts"));
    suite(&open("some/where"));
    suite(&open(""));
    // Of many that create one object at once, one does, each time.
    let stores: Vec<RemoteStore> = (0..8).map(|_| open("races")).collect();
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
