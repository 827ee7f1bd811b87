//! A real server with the S3 protocol; `scripts/s3-server.sh` installs it. The tests of the command line start it, too.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A server that ends with the test.
pub(crate) struct S3Server {
    process: Child,
    pub(crate) port: u16,
}

impl S3Server {
    /// Starts a server; `None` if it is not installed.
    ///
    /// # Panics
    /// If it is not installed and `STEAD_REQUIRE_S3` is 1.
    pub(crate) fn start() -> Option<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
        let program = target.join("s3-venv/bin/moto_server");
        if !program.exists() {
            let required = std::env::var("STEAD_REQUIRE_S3").is_ok_and(|value| value == "1");
            assert!(!required, "no S3 server is installed: run scripts/s3-server.sh");
            println!("SKIPPED: no S3 server is installed; scripts/s3-server.sh installs one");
            return None;
        }
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", "0"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().expect("it prints its port before it ends").unwrap();
            if let Some((_, port)) = line.rsplit_once("http://127.0.0.1:") {
                break port.trim().parse().unwrap();
            }
        };
        // It writes a line for each request, and would block if its output were not read.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { process, port })
    }

    pub(crate) fn create_bucket(&self, name: &str) {
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
