//! A connection's bytes: what hyper answers by itself gets a problem document, and the end of a connection takes no answer
//! with it.

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

/// Most bytes that are read and dropped after the last answer: 64 MiB.
const REST_BYTES_MAX: usize = 64 << 20;
/// How long a client may take to send the rest of a refused request and to close: 5 s.
const REST_TIMEOUT: Duration = Duration::from_secs(5);

/// The stream of one connection, as hyper uses it.
pub(super) struct Stream {
    /// `None` once the end has begun.
    tcp: Option<TokioIo<TcpStream>>,
    /// What is sent instead of a bare answer of hyper's, and how much of it was.
    instead: Option<(Vec<u8>, usize)>,
    /// Its place among the connections that there may be, until it is closed.
    place: Option<OwnedSemaphorePermit>,
    stopping: watch::Receiver<bool>,
}

impl Stream {
    pub(super) fn new(tcp: TcpStream, place: OwnedSemaphorePermit, stopping: watch::Receiver<bool>) -> Self {
        Self { tcp: Some(TokioIo::new(tcp)), instead: None, place: Some(place), stopping }
    }

    fn open(&mut self) -> io::Result<Pin<&mut TokioIo<TcpStream>>> {
        self.tcp.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Sends what stands for `bare`, if that is an answer of hyper's own.
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

/// The problem document for what is no request, instead of a bare status.
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

/// Closing with unread bytes would reset the connection, and could take the answer with it: the client may send the rest
/// of its request before it reads.
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
        // What has come is read, whatever else there is.
        biased;
        () = rest => {}
        () = tokio::time::sleep(REST_TIMEOUT) => {}
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
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(self.poll_instead(cx, buf))? {
            Some(written) => Poll::Ready(Ok(written)),
            None => self.open()?.poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tcp) = self.tcp.take() {
            let (place, stopping) = (self.place.take(), self.stopping.clone());
            // Not here: hyper takes what it has not read for an error, and drops the stream.
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
        let first = bufs.first().map_or(&[][..], |buf| buf);
        match ready!(self.poll_instead(cx, first))? {
            Some(written) => Poll::Ready(Ok(written)),
            None => self.open()?.poll_write_vectored(cx, bufs),
        }
    }
}
