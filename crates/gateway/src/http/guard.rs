//! Access control: accepts requests of programs on this machine, and refuses requests that a web page makes its reader
//! send.
//!
//! A browser sends requests of any page to loopback addresses, too. Such a request cannot have the content type JSON
//! without a preflight request (which this server refuses), nor hide its page's origin. And a page whose own name was
//! made to resolve to 127.0.0.1 still sends that name as the host.

use super::call::single;
use super::problem::{Kind, Problem};
use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderName, ORIGIN, TRANSFER_ENCODING};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;

/// The header in which a browser names the relation of the requesting site to this one.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Paths that are open to everyone, because a load balancer's probe or HTTP/1.0 may use other host names. Only requests
/// that [`may_see_reasons`] accepts see more than whether the server lives and serves.
const HEALTH: [&str; 2] = ["/healthz", "/readyz"];

/// Accepts requests that a program on this machine may have sent.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    match admit(&request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn admit(request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    let host = host(request)?;
    let is_safe = request.method().is_safe();
    if is_safe && HEALTH.contains(&request.uri().path()) {
        return Ok(());
    }
    let in_target = request.uri().authority().map(Authority::as_str);
    for host in host.iter().copied().chain(in_target) {
        if !is_loopback(host) {
            let detail = format!("the Host is {host:?}; this server is localhost or a loopback address");
            return Err(Problem::new(Kind::WrongHost, detail));
        }
    }
    if is_safe {
        return Ok(());
    }
    refuse_other_sites(headers, host.unwrap_or_default())?;
    let content_type =
        single(headers, &CONTENT_TYPE)?.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !request.body().is_end_stream() && !media_type.eq_ignore_ascii_case("application/json") {
        let detail = match content_type {
            "" => "the body has no Content-Type; it must be application/json".to_owned(),
            _ => format!("the Content-Type is {content_type:?}; it must be application/json"),
        };
        return Err(Problem::new(Kind::MediaType, detail));
    }
    plain(headers)
}

/// Refuses encoded bodies, which would be read as if they were plain; chunks are allowed.
fn plain(headers: &HeaderMap) -> Result<(), Problem> {
    let is = |value: &HeaderValue, word: &str| value.as_bytes().eq_ignore_ascii_case(word.as_bytes());
    for encoding in headers.get_all(CONTENT_ENCODING) {
        if !is(encoding, "identity") {
            let detail = format!("the Content-Encoding is {encoding:?}; send the body without one");
            return Err(Problem::new(Kind::MediaType, detail));
        }
    }
    match single(headers, &TRANSFER_ENCODING)? {
        Some(coding) if !is(coding, "chunked") => {
            let detail = format!("the Transfer-Encoding is {coding:?}; it must be chunked");
            Err(Problem::new(Kind::BadRequest, detail))
        }
        _ => Ok(()),
    }
}

/// Whether a request to [`HEALTH`] uses a name of this machine, so that it may see reasons: those of a service contain
/// its data.
pub(super) fn may_see_reasons(headers: &HeaderMap) -> bool {
    // HTTP/1.0 may send no host.
    headers.get(HOST).is_none_or(|host| host.to_str().is_ok_and(is_loopback))
}

/// Returns the requested host. HTTP/1.0 may send none, but no browser uses that version.
fn host(request: &Request) -> Result<Option<&str>, Problem> {
    let headers = request.headers();
    match single(headers, &HOST)? {
        Some(host) => Ok(Some(host.to_str().unwrap_or("(not ASCII)"))),
        None if request.version() < Version::HTTP_11 => Ok(None),
        None => Err(Problem::new(Kind::BadRequest, "the header Host is missing; HTTP/1.1 needs it")),
    }
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
    let is_cross = |site: &HeaderValue| site.as_bytes().eq_ignore_ascii_case(b"cross-site");
    if headers.get_all(SEC_FETCH_SITE).iter().any(is_cross) {
        return refused("the request comes from a page of another site".to_owned());
    }
    for origin in headers.get_all(ORIGIN) {
        let from = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
        if !from.is_some_and(|from| from.eq_ignore_ascii_case(host)) {
            return refused(format!("the request comes from a page of {origin:?}; this server is {host:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn status(method: &str, headers: &[(&str, &str)], body: &str) -> u16 {
        status_of(Version::HTTP_11, method, "/v1/checkpoints", headers, body)
    }

    fn status_of(version: Version, method: &str, uri: &str, headers: &[(&str, &str)], body: &str) -> u16 {
        let mut request = Request::builder().version(version).method(method).uri(uri);
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
    }

    #[test]
    fn there_is_one_host_and_health_is_reported_to_everyone() {
        let (local, evil) = (("host", "localhost"), ("host", "evil.example"));
        let get = |version, uri, headers: &[(&str, &str)]| status_of(version, "GET", uri, headers, "");
        let (old, new) = (Version::HTTP_10, Version::HTTP_11);
        for uri in ["/healthz", "/readyz", "/v1/status"] {
            assert_eq!(get(old, uri, &[]), 200, "{uri}");
            assert_eq!(get(new, uri, &[]), 400, "{uri}");
            for version in [old, new] {
                assert_eq!(get(version, uri, &[local, local]), 400, "{uri}");
                assert_eq!(get(version, uri, &[local, evil]), 400, "{uri}");
                let known = uri != "/v1/status";
                assert_eq!(get(version, uri, &[evil]), if known { 200 } else { 421 }, "{uri}");
            }
        }
        assert_eq!(
            get(new, "http://evil.example/v1/status", &[local]),
            421,
            "the target stands over the Host"
        );
        assert_eq!(get(new, "http://localhost/v1/status", &[local]), 200);
        assert_eq!(status_of(old, "POST", "/v1/checkpoints", &[("origin", "http://evil.example")], ""), 403);
        assert_eq!(status("POST", &[local, ("origin", "http://localhost"), ("origin", "null")], ""), 403);
        let json = ("content-type", "application/json");
        assert_eq!(status("POST", &[local, json, ("content-type", "text/plain")], "{}"), 400);
    }

    #[test]
    fn a_page_of_another_site_changes_nothing() {
        let host = ("host", "localhost:7420");
        for method in ["POST", "DELETE"] {
            for header in [
                ("origin", "http://evil.example"),
                ("origin", "http://localhost:3000"),
                ("origin", "https://localhost:7420"),
                ("origin", "null"),
                ("sec-fetch-site", "cross-site"),
            ] {
                assert_eq!(status(method, &[host, header], ""), 403, "{method} {header:?}");
            }
            assert_eq!(status(method, &[host], ""), 200, "curl sends no origin");
            assert_eq!(status(method, &[host, ("origin", "http://localhost:7420")], ""), 200);
        }
        assert_eq!(
            status("GET", &[host, ("origin", "http://evil.example")], ""),
            200,
            "the page cannot read the answer"
        );
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
        assert_eq!(status("POST", &[host], ""), 200, "a request without a body needs no type");
        let json = ("content-type", "application/json");
        for (coding, wanted) in [
            (("content-encoding", "gzip"), 415),
            (("content-encoding", "identity"), 200),
            (("transfer-encoding", "gzip, chunked"), 400),
            (("transfer-encoding", "chunked, chunked"), 400),
            (("transfer-encoding", "Chunked"), 200),
        ] {
            assert_eq!(status("POST", &[host, json, coding], "{}"), wanted, "{coding:?}");
        }
        let chunked = ("transfer-encoding", "chunked");
        assert_eq!(status("POST", &[host, json, chunked, chunked], "{}"), 400);
    }
}
