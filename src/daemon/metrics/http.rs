//! The little HTTP that a scraper speaks (RFC 9110 and 9112): one request, one answer, and the connection ends.

use std::io::Write;

/// Most bytes of a request's head.
pub const MAX_REQUEST: usize = 8192;
/// Most header fields of a request.
const MAX_HEADERS: usize = 64;
/// Where the metrics are.
pub const PATH: &str = "/metrics";
/// Says that the process lives; and whether the node has its subnet and knows its peers. As flannel's.
const ALIVE: &str = "/healthz";
const READY: &str = "/readyz";

/// What a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// The metrics; only the head of the answer when `head`.
    Metrics {
        /// HEAD was the method.
        head: bool,
    },
    /// Whether the process lives.
    Alive {
        /// HEAD was the method.
        head: bool,
    },
    /// Whether the node is ready.
    Ready {
        /// HEAD was the method.
        head: bool,
    },
    /// Anything else, which is refused.
    Refused {
        /// Why.
        status: Status,
        /// HEAD was the method.
        head: bool,
    },
}

/// The answers there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// What was asked for follows.
    Ok,
    /// The bytes are no request.
    BadRequest,
    /// Nothing is there.
    NotFound,
    /// Metrics can only be read.
    MethodNotAllowed,
    /// The request is longer than anybody needs.
    TooLarge,
    /// The data path does not answer.
    Unavailable,
    /// The node waits for its subnet or its peers.
    NotReady,
}

impl Status {
    /// The status line's end.
    fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::BadRequest => "400 Bad Request",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::TooLarge => "431 Request Header Fields Too Large",
            Status::Unavailable | Status::NotReady => "503 Service Unavailable",
        }
    }

    /// What a person reads who sees it; empty for [`Status::Ok`].
    pub fn explain(self) -> &'static str {
        match self {
            Status::Ok => "",
            Status::BadRequest => "This is no HTTP request (ask for GET /metrics).\n",
            Status::NotFound => {
                "There are /metrics, /healthz and /readyz (only the latter two at health.healthz_port).\n"
            }
            Status::MethodNotAllowed => "This can only be read (use GET or HEAD).\n",
            Status::TooLarge => "A request has at most 8 KiB and 64 header fields.\n",
            Status::NotReady => "not ready\n",
            Status::Unavailable => "The data path did not answer within 1 s (see the node's log).\n",
        }
    }
}

/// Understand what a client has sent so far; `None` when more is needed to tell.
pub fn understand(bytes: &[u8]) -> Option<Request> {
    let refused = |status| Some(Request::Refused { status, head: false });
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() < MAX_REQUEST => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return refused(Status::TooLarge);
        }
        Ok(httparse::Status::Complete(_)) => {}
        Err(_) => return refused(Status::BadRequest),
    }
    let has_host = request
        .headers
        .iter()
        .any(|h| h.name.eq_ignore_ascii_case("host"));
    let head = match request.method {
        Some("GET") => Some(false),
        Some("HEAD") => Some(true),
        _ => None,
    };
    // Whatever is wrong with it, the answer to HEAD has no body (RFC 9110 section 9.3.2).
    let refused = |status| {
        let head = head.unwrap_or(false);
        Some(Request::Refused { status, head })
    };
    if request.version == Some(1) && !has_host {
        // RFC 9112 section 3.2.
        return refused(Status::BadRequest);
    }
    let path = request.path.unwrap_or_default();
    match (path.split('?').next(), head) {
        (Some(PATH), Some(head)) => Some(Request::Metrics { head }),
        (Some(ALIVE), Some(head)) => Some(Request::Alive { head }),
        (Some(READY), Some(head)) => Some(Request::Ready { head }),
        (Some(PATH | ALIVE | READY), None) => refused(Status::MethodNotAllowed),
        _ => refused(Status::NotFound),
    }
}

/// The head of the answer to which a body of `length` bytes belongs.
pub fn head(status: Status, content_type: &str, length: usize) -> Vec<u8> {
    let allow = match status {
        Status::MethodNotAllowed => "Allow: GET, HEAD\r\n",
        _ => "",
    };
    let mut head = Vec::with_capacity(256);
    // A vector takes everything.
    let _ = write!(
        head,
        "HTTP/1.1 {}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{allow}Connection: close\r\n\r\n",
        status.line()
    );
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_told_apart() {
        let (get, head) = (
            Some(Request::Metrics { head: false }),
            Some(Request::Metrics { head: true }),
        );
        let refused = |status| Some(Request::Refused { status, head: false });
        let long = format!(
            "GET /metrics HTTP/1.1\r\nHost: x\r\nA: {}",
            "a".repeat(MAX_REQUEST)
        );
        let many = format!(
            "GET /metrics HTTP/1.0\r\n{}\r\n",
            "A: b\r\n".repeat(MAX_HEADERS + 1)
        );
        let cases: &[(&str, Option<Request>)] = &[
            ("", None),
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n", None),
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", get),
            ("GET /metrics HTTP/1.0\r\n\r\n", get),
            ("GET /metrics?name=x HTTP/1.0\r\n\r\n", get),
            ("GET /metrics HTTP/1.0\n\nGET / HTTP/1.0\n\n", get),
            ("HEAD /metrics HTTP/1.0\r\n\r\n", head),
            (
                "GET /healthz HTTP/1.0\r\n\r\n",
                Some(Request::Alive { head: false }),
            ),
            (
                "HEAD /readyz HTTP/1.0\r\n\r\n",
                Some(Request::Ready { head: true }),
            ),
            ("POST /readyz HTTP/1.0\r\n\r\n", refused(Status::MethodNotAllowed)),
            ("GET /metrics HTTP/1.1\r\n\r\n", refused(Status::BadRequest)),
            ("GET / HTTP/1.0\r\n\r\n", refused(Status::NotFound)),
            ("GET /metrics/ HTTP/1.0\r\n\r\n", refused(Status::NotFound)),
            (
                "HEAD /metrics/ HTTP/1.0\r\n\r\n",
                Some(Request::Refused {
                    status: Status::NotFound,
                    head: true,
                }),
            ),
            (
                "POST /metrics HTTP/1.0\r\n\r\n",
                refused(Status::MethodNotAllowed),
            ),
            ("\x16\x03\x01\x02", refused(Status::BadRequest)),
            ("GET /metrics\r\n\r\n", refused(Status::BadRequest)),
            ("GET /metrics HTTP/2.0\r\n\r\n", refused(Status::BadRequest)),
            (&long, refused(Status::TooLarge)),
            (&many, refused(Status::TooLarge)),
        ];
        for (text, expected) in cases {
            assert_eq!(understand(text.as_bytes()), *expected, "{text:.60}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_understood_somehow(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), begun: bool, cut in 0usize..60,
        ) {
            let good = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n";
            let mut all = if begun { good[..cut.min(good.len())].to_vec() } else { Vec::new() };
            all.extend(bytes);
            understand(&all);
            all.resize(MAX_REQUEST, b'a');
            prop_assert_ne!(understand(&all), None);
        }
    }
}
