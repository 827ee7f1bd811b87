//! Who may ask: programs on this machine, and no web page behind its reader's back.
//!
//! A browser sends what any page asks for to loopback addresses, too. What such a request can't be is JSON by its type
//! without a question to this server before it (which gets no leave), or without the page's origin. And a page whose own
//! name was made to mean 127.0.0.1 still tells that name as the host.

use super::problem::{Kind, Problem};
use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_TYPE, HOST, HeaderName, ORIGIN};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;

/// How a browser tells where a request comes from.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Lets requests pass that a program on this machine may have sent.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    match admit(&request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn admit(request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    let host = text(headers, HOST);
    if !is_loopback(host) {
        let detail = format!("the Host is {host:?}; this server is localhost or a loopback address");
        return Err(Problem::new(Kind::WrongHost, detail));
    }
    if request.method().is_safe() {
        return Ok(());
    }
    refuse_other_sites(headers, host)?;
    let told = text(headers, CONTENT_TYPE);
    let media_type = told.split(';').next().unwrap_or_default().trim();
    if !request.body().is_end_stream() && !media_type.eq_ignore_ascii_case("application/json") {
        let detail = format!("the Content-Type is {told:?}; bodies are application/json");
        return Err(Problem::new(Kind::MediaType, detail));
    }
    Ok(())
}

/// A header's text; empty if it is missing or none.
fn text(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Whether the name or address in `HOST[:PORT]` can only mean this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn refuse_other_sites(headers: &HeaderMap, host: &str) -> Result<(), Problem> {
    let refused = |detail| Err(Problem::new(Kind::CrossSite, detail));
    if text(headers, SEC_FETCH_SITE).eq_ignore_ascii_case("cross-site") {
        return refused("a page of another site asked for it".to_owned());
    }
    if !headers.contains_key(ORIGIN) {
        return Ok(());
    }
    let origin = text(headers, ORIGIN);
    match origin.strip_prefix("http://") {
        Some(from) if from.eq_ignore_ascii_case(host) => Ok(()),
        _ => refused(format!("a page of {origin:?} asked for it; this is {host:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn status(method: &str, headers: &[(&str, &str)], body: &str) -> u16 {
        let mut request = Request::builder().method(method).uri("/v1/checkpoints");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        admit(&request).map_or_else(|problem| problem.status, |()| 200)
    }

    #[test]
    fn only_names_of_this_machine_are_answered() {
        for host in ["localhost", "LocalHost:7420", "127.0.0.1:7420", "127.9.9.9", "[::1]:7420", "[::1]"] {
            assert_eq!(status("GET", &[("host", host)], ""), 200, "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example:7420", "10.0.0.1", "127.0.0.1.evil.example", "", "["]
        {
            assert_eq!(status("GET", &[("host", host)], ""), 421, "{host}");
        }
        assert_eq!(status("GET", &[], ""), 421);
    }

    #[test]
    fn a_page_of_another_site_changes_nothing() {
        let host = ("host", "localhost:7420");
        for method in ["POST", "DELETE"] {
            for told in [
                ("origin", "http://evil.example"),
                ("origin", "http://localhost:3000"),
                ("origin", "https://localhost:7420"),
                ("origin", "null"),
                ("sec-fetch-site", "cross-site"),
            ] {
                assert_eq!(status(method, &[host, told], ""), 403, "{method} {told:?}");
            }
            assert_eq!(status(method, &[host], ""), 200, "curl tells no origin");
            assert_eq!(status(method, &[host, ("origin", "http://localhost:7420")], ""), 200);
        }
        assert_eq!(status("GET", &[host, ("origin", "http://evil.example")], ""), 200, "it can't read it");
    }

    #[test]
    fn a_body_is_json_by_its_type() {
        let host = ("host", "localhost:7420");
        for good in ["application/json", "Application/JSON; charset=utf-8"] {
            assert_eq!(status("POST", &[host, ("content-type", good)], "{}"), 200, "{good}");
        }
        for bad in ["text/plain", "application/x-www-form-urlencoded", "text/plain; application/json", ""] {
            assert_eq!(status("POST", &[host, ("content-type", bad)], "{}"), 415, "{bad}");
        }
        assert_eq!(status("POST", &[host], "{}"), 415);
        assert_eq!(status("POST", &[host], ""), 200, "without a body there is no type to tell");
    }
}
