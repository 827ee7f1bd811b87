//! The bytes of a connection: hyper's own bare answers are replaced by problem documents, and closing a connection
//! loses no answer.

use super::limits::Limits;
use super::problem::{Kind, Problem};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Sleep, sleep};

/// Maximum number of bytes that are read and dropped after the last answer: 64 MiB.
const REST_BYTES_MAX: usize = 64 << 20;
/// Time that a client may take to send the rest of a refused request and to close: 5 s.
const REST_TIMEOUT: Duration = Duration::from_secs(5);

/// The stream of one connection, as hyper uses it.
pub(super) struct Stream {
    /// `None` once the end has begun.
    tcp: Option<TokioIo<TcpStream>>,
    /// The bytes sent instead of a bare answer of hyper, and the number of them sent so far.
    instead: Option<(Vec<u8>, usize)>,
    /// Runs while the client reads nothing of an answer.
    stall: Option<Pin<Box<Sleep>>>,
    stall_timeout: Duration,
    /// Its slot among the allowed connections; kept until it is closed.
    place: Option<OwnedSemaphorePermit>,
    stopping: watch::Receiver<bool>,
}

impl Stream {
    /// Creates the stream; `stall_timeout` is the time without progress of an answer after which the connection is
    /// closed.
    pub(super) fn new(
        tcp: TcpStream,
        stall_timeout: Duration,
        place: OwnedSemaphorePermit,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let tcp = Some(TokioIo::new(tcp));
        Self { tcp, instead: None, stall: None, stall_timeout, place: Some(place), stopping }
    }

    /// Fails a write that has waited for too long: a client that does not read must not keep its slot.
    fn unless_stalled<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let timeout = self.stall_timeout;
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_write_now(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let first = bufs.first().map_or(&[][..], |buf| buf);
        match ready!(self.poll_instead(cx, first))? {
            Some(written) => Poll::Ready(Ok(written)),
            None => self.open()?.poll_write_vectored(cx, bufs),
        }
    }

    fn open(&mut self) -> io::Result<Pin<&mut TokioIo<TcpStream>>> {
        self.tcp.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Sends the replacement of `bare` if that is an answer of hyper's own.
    fn poll_instead(&mut self, cx: &mut Context<'_>, bare: &[u8]) -> Poll<io::Result<Option<usize>>> {
        let Some((answer, sent)) = &mut self.instead else {
            let Some(answer) = with_problem(bare) else { return Poll::Ready(Ok(None)) };
            self.instead = Some((answer, 0));
            return self.poll_instead(cx, bare);
        };
        let Some(tcp) = &mut self.tcp else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        while *sent < answer.len() {
            match ready!(Pin::new(&mut *tcp).poll_write(cx, &answer[*sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                more => *sent += more,
            }
        }
        self.instead = None;
        Poll::Ready(Ok(Some(bare.len())))
    }
}

/// Returns the problem document that replaces a bare answer to an invalid request.
fn with_problem(bare: &[u8]) -> Option<Vec<u8>> {
    let head = bare.strip_prefix(b"HTTP/1.1 ")?.strip_suffix(b"\r\n\r\n")?;
    let is_bare = head.windows(17).any(|part| part.eq_ignore_ascii_case(b"content-length: 0"));
    let problem = match head.get(..3).filter(|_| is_bare)? {
        b"400" => Problem::new(Kind::BadRequest, "this is not a valid HTTP/1.1 request"),
        b"414" | b"431" => {
            let (bytes, fields) = (Limits::HEAD_BYTES_MAX, Limits::HEAD_FIELDS_MAX);
            let detail = format!("the request's head has more than {bytes} bytes or {fields} fields");
            Problem::new(Kind::HeadTooLarge, detail)
        }
        _ => return None,
    };
    Some(problem.to_last_answer())
}

/// Reads and drops the rest of a request before closing. Closing with unread bytes would reset the connection and could
/// lose the answer: the client may send the rest of its request before it reads.
async fn end(mut tcp: TcpStream, mut stopping: watch::Receiver<bool>) {
    if tcp.shutdown().await.is_err() {
        return;
    }
    let rest = async {
        let mut left = REST_BYTES_MAX;
        let mut buffer = [0; 16 << 10];
        while let Ok(len @ 1..) = tcp.read(&mut buffer).await
            && left > 0
        {
            left = left.saturating_sub(len);
        }
    };
    tokio::select! {
        // Bytes that have arrived are read first.
        biased;
        () = rest => {}
        () = sleep(REST_TIMEOUT) => {}
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.open()?.poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tcp) = self.tcp.take() {
            let (place, stopping) = (self.place.take(), self.stopping.clone());
            // In a task of its own: hyper takes unread input for an error, and drops the stream.
            tokio::spawn(async move {
                end(tcp.into_inner(), stopping).await;
                drop(place);
            });
        }
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.poll_write_now(cx, bufs);
        self.unless_stalled(cx, written)
    }
}
