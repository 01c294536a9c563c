//! A resolver of the test's own, over UDP and TCP, whose answer depends on the first label of the name.

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What was asked: `udp a.example A`, and how often.
type Asked = Arc<Mutex<BTreeMap<String, usize>>>;

pub struct Fake {
    pub at: SocketAddr,
    asked: Asked,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Fake {
    /// At any port of loopback.
    pub fn start() -> Fake {
        Fake::start_at("127.0.0.1:0".parse().unwrap(), 1).unwrap()
    }

    /// At `at`; names have addresses that end in `last`.
    pub fn start_at(at: SocketAddr, last: u8) -> std::io::Result<Fake> {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind(at)?;
            match TcpListener::bind(udp.local_addr()?) {
                Ok(tcp) => break (udp, tcp),
                Err(_) if at.port() == 0 => {}
                Err(e) => return Err(e),
            }
        };
        let at = udp.local_addr()?;
        udp.set_read_timeout(Some(Duration::from_millis(50)))?;
        tcp.set_nonblocking(true)?;
        let (asked, end) = (Asked::default(), Arc::new(AtomicBool::new(false)));
        let of_udp = (asked.clone(), end.clone());
        let of_tcp = (asked.clone(), end.clone());
        let udp = thread::spawn(move || {
            let (asked, end) = of_udp;
            let mut space = [0; 4096];
            while !end.load(Ordering::Relaxed) {
                if let Ok((n, from)) = udp.recv_from(&mut space) {
                    for answer in answers(&space[..n], false, last, &asked) {
                        udp.send_to(&answer, from).unwrap();
                    }
                }
            }
        });
        let tcp = thread::spawn(move || {
            let (asked, end) = of_tcp;
            while !end.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((mut stream, _)) => {
                        stream.set_nonblocking(false).unwrap();
                        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                        let mut len = [0; 2];
                        while stream.read_exact(&mut len).is_ok() {
                            let mut question = vec![0; u16::from_be_bytes(len).into()];
                            stream.read_exact(&mut question).unwrap();
                            for answer in answers(&question, true, last, &asked) {
                                let len = (answer.len() as u16).to_be_bytes();
                                let _ = stream.write_all(&[&len[..], &answer].concat());
                            }
                        }
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(Fake {
            at,
            asked,
            end,
            threads: vec![udp, tcp],
        })
    }

    /// How often a question that contains `what` was asked.
    pub fn asked(&self, what: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|(q, _)| q.contains(what))
            .map(|(_, n)| n)
            .sum()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let name = |s: &str| Name::from_ascii(s).unwrap();
    let soa = SOA::new(
        name("ns.example."),
        name("h.example."),
        7,
        3600,
        600,
        86_400,
        minimum,
    );
    Record::from_rdata(name("example."), ttl, RData::SOA(soa))
}

/// What is said to `bytes`, one message after the other.
fn answers(bytes: &[u8], stream: bool, last: u8, asked: &Asked) -> Vec<Vec<u8>> {
    let question = Message::from_vec(bytes).expect("podwire asks properly");
    let query = question.queries[0].clone();
    let name = query.name().to_lowercase().to_string();
    let kind = query.query_type();
    let transport = if stream { "tcp" } else { "udp" };
    *asked
        .lock()
        .unwrap()
        .entry(format!("{transport} {name} {kind}"))
        .or_default() += 1;
    let first = name.split('.').next().unwrap_or_default();
    let behaviour = first.split('-').next().unwrap_or_default();
    let mut answer = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.recursion_desired = true;
    answer.metadata.recursion_available = true;
    answer.add_query(query.clone());
    let record = |data| Record::from_rdata(query.name().clone(), 60, data);
    let address = |last: u8| match kind {
        RecordType::A => Some(RData::A(A::new(192, 0, 2, last))),
        RecordType::AAAA => Some(RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()))),
        _ => None,
    };
    answer.add_answers(address(last).map(record));
    match behaviour {
        "silent" => return Vec::new(),
        "nx" => {
            answer.answers.clear();
            answer.metadata.response_code = ResponseCode::NXDomain;
            answer.add_authority(soa(600, 2));
        }
        "nodata" => {
            answer.answers.clear();
            answer.add_authority(soa(600, 2));
        }
        "short" => answer.answers[0].ttl = 1,
        "servfail" => {
            answer.answers.clear();
            answer.metadata.response_code = ResponseCode::ServFail;
        }
        "big" => {
            answer.answers.clear();
            let text = |i: usize| RData::TXT(TXT::new(vec![format!("{i:03}{}", "x".repeat(97))]));
            answer.add_answers((0..30).map(|i| record(text(i))));
            let room = question.edns.as_ref().map_or(512, |e| e.max_payload());
            let whole = answer.to_vec().unwrap();
            if !stream && whole.len() > room.into() {
                return vec![answer.truncate().to_vec().unwrap()];
            }
        }
        "huge" => {
            // More than was asked for, as some servers have it.
            answer.answers.clear();
            answer.add_answers(
                (0..10).map(|i| record(RData::TXT(TXT::new(vec![format!("{i}{}", "y".repeat(200))])))),
            );
        }
        "noedns" if question.edns.is_some() => {
            return vec![
                Message::error_msg(question.metadata.id, OpCode::Query, ResponseCode::FormErr)
                    .to_vec()
                    .unwrap(),
            ];
        }
        "lowercase" => {
            answer.queries[0].set_name(query.name().to_lowercase());
        }
        "forged" if !stream => {
            let right = answer.to_vec().unwrap();
            let mut forged = answer.clone();
            forged.answers = vec![record(RData::A(A::new(6, 6, 6, 6)))];
            let mut all = Vec::new();
            // Another identifier.
            for i in 1..50u16 {
                forged.metadata.id = question.metadata.id.wrapping_add(i);
                all.push(forged.to_vec().unwrap());
            }
            // Another question; another type; a question; no question; half of one.
            forged.metadata.id = question.metadata.id;
            forged.queries[0].set_name(Name::from_ascii("other.example.").unwrap());
            all.push(forged.to_vec().unwrap());
            forged.queries = vec![query.clone()];
            forged.queries[0].set_query_type(RecordType::MX);
            all.push(forged.to_vec().unwrap());
            forged.queries = vec![query.clone()];
            forged.metadata.message_type = MessageType::Query;
            all.push(forged.to_vec().unwrap());
            forged.metadata.message_type = MessageType::Response;
            forged.queries.clear();
            all.push(forged.to_vec().unwrap());
            all.push(right[..20].to_vec());
            all.push(right);
            return all;
        }
        "garbage" => {
            let mut bytes = answer.to_vec().unwrap();
            // The first record's name points to itself.
            let at = bytes.len() - 16;
            bytes[at..at + 2].copy_from_slice(&[0xc0, at as u8]);
            return vec![bytes];
        }
        _ => {}
    }
    vec![answer.to_vec().unwrap()]
}
