//! The load on an HTTP server: connections that each keep one call open. It runs in a child process, so that its work
//! is not measured as the server's.

use super::callers::runtime;
use super::figures::quantile;
use super::{BenchArgs, failed};
use crate::failure::{Exit, Failure};
use crate::output;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Keys that are written.
const KEYS: u32 = 100_000;
/// Upper bound of a response's size; actual ones are far smaller.
const RESPONSE_BYTES_MAX: usize = 64 << 10;

/// Results of a load.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answers {
    pub(super) seconds: f64,
    /// Calls answered 200.
    pub(super) answered: u64,
    /// Calls answered with another status.
    pub(super) refused: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

pub(super) fn run_child(args: &BenchArgs) -> Result<(), Failure> {
    let addresses: Result<Vec<SocketAddr>, _> = args.address.iter().map(|address| address.parse()).collect();
    let addresses = addresses.map_err(|error| failed("read an address")(&error))?;
    if addresses.is_empty() {
        return Err(Failure::new(Exit::Usage, "--address is missing"));
    }
    let runtime = runtime()?;
    let start = Instant::now();
    let connections: Vec<_> = (0..args.connections as usize)
        .map(|number| {
            let address = addresses[number % addresses.len()];
            runtime.spawn(connection(address, start, args.round(), args.value_bytes))
        })
        .collect();
    let mut micros = Vec::new();
    let mut refused = 0;
    runtime.block_on(async {
        for connection in connections {
            let ended = connection.await.map_err(|error| failed("load a server")(&error))?;
            let (mut times, others) = ended.map_err(|error| failed("call a server")(&error))?;
            micros.append(&mut times);
            refused += others;
        }
        Ok::<(), Failure>(())
    })?;
    let seconds = start.elapsed().as_secs_f64();
    micros.sort_unstable();
    let ms = |share| quantile(&micros, share) / 1e3;
    let answered = micros.len() as u64;
    output::json(&Answers { seconds, answered, refused, p50_ms: ms(0.5), p99_ms: ms(0.99) })
}

async fn connection(
    address: SocketAddr,
    start: Instant,
    time: Duration,
    value_bytes: usize,
) -> std::io::Result<(Vec<u32>, u64)> {
    let text = (value_bytes > 0).then(|| format!("\"{}\"", "v".repeat(value_bytes)));
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut micros, mut others) = (Vec::new(), 0);
    let (mut request, mut response) = (String::new(), Vec::new());
    loop {
        let begun = Instant::now();
        if begun - start >= time {
            return Ok((micros, others));
        }
        let key = fastrand::u32(..KEYS);
        match &text {
            Some(text) => write_call(&mut request, key, text),
            None => write_call(&mut request, key, &fastrand::u32(..).to_string()),
        }
        stream.write_all(request.as_bytes()).await?;
        response.clear();
        let ok = loop {
            if stream.read_buf(&mut response).await? == 0 || response.len() > RESPONSE_BYTES_MAX {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(length) = response_length(&response)
                && response.len() >= length
            {
                break response.starts_with(b"HTTP/1.1 200");
            }
        };
        if ok { micros.push(begun.elapsed().as_micros() as u32) } else { others += 1 }
    }
}

fn write_call(request: &mut String, key: u32, value: &str) {
    use std::fmt::Write;
    let len = "{\"put\":{\"value\":}}".len() + value.len();
    request.clear();
    // Writing to a string cannot fail.
    let _ = write!(
        request,
        "POST /v1/call/kv/k{key} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n\r\n\
         {{\"put\":{{\"value\":{value}}}}}"
    );
}

/// Returns the length of the response at the start of the bytes, once its head is complete.
fn response_length(response: &[u8]) -> Option<usize> {
    let head = response.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let lines = response[..head].split(|&byte| byte == b'\n');
    let mut length = lines.filter_map(|line| {
        let (name, value) = line.split_at_checked(15)?;
        name.eq_ignore_ascii_case(b"content-length:")
            .then(|| std::str::from_utf8(value).ok()?.trim().parse().ok())?
    });
    Some(head + length.next_back().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_ends_where_its_length_says() {
        let response = b"HTTP/1.1 200 OK\r\ncontent-type: x\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(response_length(response), Some(response.len()));
        assert_eq!(response_length(&response[..20]), None);
        assert_eq!(response_length(b"HTTP/1.1 204 No Content\r\n\r\n"), Some(27));
    }

    #[test]
    fn a_call_has_the_length_of_its_body() {
        let mut request = String::new();
        write_call(&mut request, 7, &u32::MAX.to_string());
        assert!(request.starts_with("POST /v1/call/kv/k7 HTTP/1.1\r\n"));
        assert!(request.ends_with("content-length: 28\r\n\r\n{\"put\":{\"value\":4294967295}}"), "{request}");
    }
}
