//! Messages at their edges: a question as it comes, and an answer as it goes.
//!
//! A question is read in place, strictly, by [`Question::read`]. An answer is kept as an [`Answer`]: encoded once,
//! without EDNS, with the places of its times to live; [`Answer::write`] copies it for one client with that client's
//! identifier, flags, spelling of the name, EDNS and size. That is all a cached answer costs.

use super::name;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use std::ops::Range;

/// Bytes of a header.
pub const HEADER: usize = 12;
/// What every client takes over UDP (RFC 1035 section 4.2.1).
const PLAIN: u16 = 512;
/// Most bytes of an answer over UDP, and what is told to others: it passes everywhere unfragmented (DNS flag day 2020).
pub const PAYLOAD: u16 = 1232;
/// Most bytes over TCP.
pub const MAX_MESSAGE: usize = 65_535;

const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AA: u16 = 0x0400;
const TC: u16 = 0x0200;
const RD: u16 = 0x0100;
const RA: u16 = 0x0080;
const CD: u16 = 0x0010;
const OPT: u16 = 41;
/// Of the OPT record's "time to live": the client takes DNSSEC records (RFC 3225).
const DO: u16 = 0x8000;

/// What a client said of EDNS (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Largest UDP message it takes.
    pub payload: u16,
    /// Whether it wants DNSSEC records.
    pub dnssec_ok: bool,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question<B> {
    /// The client's identifier.
    pub id: u16,
    flags: u16,
    /// Name, type and class as they came.
    section: B,
    /// What it said of EDNS.
    pub edns: Option<Edns>,
}

/// What is wrong with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// No header: nothing to answer.
    Short,
    /// An answer: nothing to answer, lest two servers never end.
    Response,
    /// It cannot be read.
    Malformed,
    /// Another operation than a query.
    Opcode,
    /// A version of EDNS that is not known.
    Version,
}

impl Flaw {
    /// The code of the answer; none when there is none.
    pub fn code(self) -> Option<ResponseCode> {
        match self {
            Flaw::Short | Flaw::Response => None,
            Flaw::Malformed => Some(ResponseCode::FormErr),
            Flaw::Opcode => Some(ResponseCode::NotImp),
            Flaw::Version => Some(ResponseCode::BADVERS),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

impl<'b> Question<&'b [u8]> {
    /// Read a message of a client.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(bytes: &'b [u8]) -> Result<Question<&'b [u8]>, Flaw> {
        let head = |at| word(bytes, at).ok_or(Flaw::Short);
        let (id, flags, questions) = (head(0)?, head(2)?, head(4)?);
        let (answers, authorities, additionals) = (head(6)?, head(8)?, head(10)?);
        if flags & QR != 0 {
            return Err(Flaw::Response);
        }
        if flags & OPCODE != 0 {
            return Err(Flaw::Opcode);
        }
        // An IXFR has an authority; it is refused all the same.
        if (questions, answers, authorities) != (1, 0, 0) {
            return Err(Flaw::Malformed);
        }
        let rest = &bytes[HEADER..];
        let end = name::wire_len(rest).ok_or(Flaw::Malformed)? + 4;
        let section = rest.get(..end).ok_or(Flaw::Malformed)?;
        let edns = edns(bytes, HEADER + end, additionals)?;
        Ok(Question {
            id,
            flags,
            section,
            edns,
        })
    }
}

/// What the additional records of a question, which begin at `at`, say of EDNS. Signatures (TSIG) are stepped over.
fn edns(bytes: &[u8], mut at: usize, records: u16) -> Result<Option<Edns>, Flaw> {
    let mut found = None;
    for _ in 0..records {
        let owner = skip_name(bytes, at).ok_or(Flaw::Malformed)?;
        let read = |offset: usize| word(bytes, owner + offset).ok_or(Flaw::Malformed);
        let (kind, class, high, low, len) = (read(0)?, read(2)?, read(4)?, read(6)?, read(8)?);
        if kind == OPT {
            if found.is_some() || owner != at + 1 {
                return Err(Flaw::Malformed);
            }
            if high & 0xff != 0 {
                return Err(Flaw::Version);
            }
            found = Some(Edns {
                payload: class,
                dnssec_ok: low & DO != 0,
            });
        }
        at = owner + 10 + usize::from(len);
        if at > bytes.len() {
            return Err(Flaw::Malformed);
        }
    }
    // Bytes that nothing counts have no meaning that could be answered.
    if at == bytes.len() {
        Ok(found)
    } else {
        Err(Flaw::Malformed)
    }
}

/// Where the name that begins at `at` ends; it is not followed.
fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            len @ 1..=63 => at += 1 + usize::from(len),
            0xc0.. => return bytes.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

impl<B: AsRef<[u8]>> Question<B> {
    /// The name in wire form, in the client's spelling.
    pub fn name(&self) -> &[u8] {
        let section = self.section.as_ref();
        &section[..section.len().saturating_sub(4)]
    }

    /// The type.
    pub fn kind(&self) -> RecordType {
        RecordType::from(self.tail(0))
    }

    /// The class.
    pub fn class(&self) -> u16 {
        self.tail(2)
    }

    fn tail(&self, at: usize) -> u16 {
        let section = self.section.as_ref();
        section
            .len()
            .checked_sub(4)
            .and_then(|tail| word(section, tail + at))
            .unwrap_or(0)
    }

    /// Whether others may be asked.
    pub fn recursion_desired(&self) -> bool {
        self.flags & RD != 0
    }

    /// Whether a validating resolver shall answer without checking.
    pub fn checking_disabled(&self) -> bool {
        self.flags & CD != 0
    }

    /// Whether DNSSEC records are wanted.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|e| e.dnssec_ok)
    }

    /// The same, by itself.
    pub fn to_owned(&self) -> Question<Box<[u8]>> {
        Question {
            id: self.id,
            flags: self.flags,
            section: self.section.as_ref().into(),
            edns: self.edns,
        }
    }

    /// Most bytes an answer may have.
    pub fn limit(&self, stream: bool) -> usize {
        match (stream, self.edns) {
            (true, _) => MAX_MESSAGE,
            (false, None) => PLAIN.into(),
            (false, Some(edns)) => edns.payload.clamp(PLAIN, PAYLOAD).into(),
        }
    }

    /// What both a question asked and one under way are known by: the name in lower case, type, class, and what else
    /// makes a difference to the answer.
    pub fn key<'s>(&self, space: &'s mut [u8; 260]) -> &'s [u8] {
        let section = self.section.as_ref();
        let len = section.len().min(space.len() - 1);
        space[..len].copy_from_slice(&section[..len]);
        space[..len.saturating_sub(4)].make_ascii_lowercase();
        space[len] = u8::from(self.dnssec_ok()) | u8::from(self.checking_disabled()) << 1;
        &space[..=len]
    }

    /// Append an answer that has nothing but a code.
    pub fn write_code(&self, code: ResponseCode, out: &mut Vec<u8>) {
        let start = out.len();
        self.head(u16::from(code) & 15, 0, out);
        self.close(code.high(), [0; 3], start, out);
    }

    /// Header without counts, and question.
    fn head(&self, flags: u16, counts: u16, out: &mut Vec<u8>) {
        let flags = QR | RA | self.flags & (RD | CD) | flags;
        for word in [self.id, flags, 1, counts, 0, 0] {
            out.extend(word.to_be_bytes());
        }
        out.extend(self.section.as_ref());
    }

    /// Counts, and EDNS if the client has it.
    fn close(&self, high: u8, mut counts: [u16; 3], start: usize, out: &mut Vec<u8>) {
        if let Some(edns) = self.edns {
            out.extend([0, 0, OPT as u8]);
            out.extend(PAYLOAD.to_be_bytes());
            out.extend([high, 0]);
            out.extend(if edns.dnssec_ok { DO } else { 0 }.to_be_bytes());
            out.extend([0, 0]);
            counts[2] = counts[2].saturating_add(1);
        }
        for (i, count) in counts.iter().enumerate() {
            let at = start + 6 + 2 * i;
            out[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
    }
}

/// Answer a message that is no question; whether there is an answer.
pub fn write_flaw(bytes: &[u8], flaw: Flaw, out: &mut Vec<u8>) -> bool {
    let (Some(code), Some(id), Some(flags)) = (flaw.code(), word(bytes, 0), word(bytes, 2)) else {
        return false;
    };
    let flags = QR | RA | flags & (OPCODE | RD) | u16::from(code) & 15;
    let additionals = u16::from(code.high() > 0);
    for word in [id, flags, 0, 0, 0, additionals] {
        out.extend(word.to_be_bytes());
    }
    if additionals > 0 {
        out.extend([0, 0, OPT as u8]);
        out.extend(PAYLOAD.to_be_bytes());
        out.extend([code.high(), 0, 0, 0, 0, 0]);
    }
    true
}

/// Append a question of one's own: with recursion, and with EDNS if `edns` says what of DNSSEC.
pub fn write_question(
    id: u16,
    section: &[u8],
    checking_disabled: bool,
    edns: Option<bool>,
    out: &mut Vec<u8>,
) {
    let flags = RD | if checking_disabled { CD } else { 0 };
    for word in [id, flags, 1, 0, 0, u16::from(edns.is_some())] {
        out.extend(word.to_be_bytes());
    }
    out.extend(section);
    if let Some(dnssec_ok) = edns {
        out.extend([0, 0, OPT as u8]);
        out.extend(PAYLOAD.to_be_bytes());
        out.extend([0, 0]);
        out.extend(if dnssec_ok { DO } else { 0 }.to_be_bytes());
        out.extend([0, 0]);
    }
}

/// An answer, encoded for whoever asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// A whole message without EDNS; identifier and spelling of the name are those of whoever asked first.
    bytes: Box<[u8]>,
    /// Where the question ends.
    body: usize,
    /// Where times to live are.
    ttls: Box<[u16]>,
    authoritative: bool,
    code: ResponseCode,
}

impl Answer {
    /// Encode a message, which has one question. EDNS is each client's own, and left out; so is what is said of its
    /// authenticity, which podwire does not check.
    ///
    /// `None` when it cannot be encoded.
    pub fn of(mut message: Message) -> Option<Answer> {
        message.edns = None;
        message.signature = None;
        let (code, authoritative) = (message.metadata.response_code, message.metadata.authoritative);
        // The encoder cannot say a code above 15 without EDNS; it is said when it is written.
        message.metadata.response_code = ResponseCode::from_low(code.low());
        let bytes = message.to_vec().ok().filter(|b| b.len() <= MAX_MESSAGE)?;
        let body = HEADER + name::wire_len(bytes.get(HEADER..)?)? + 4;
        let ttls = ttls(&bytes, body)?;
        Some(Answer {
            bytes: bytes.into(),
            body,
            ttls: ttls.into(),
            authoritative,
            code,
        })
    }

    /// The code.
    pub fn code(&self) -> ResponseCode {
        self.code
    }

    /// Bytes of memory it takes.
    pub fn size(&self) -> usize {
        self.bytes.len() + 2 * self.ttls.len()
    }

    /// The message again, to be changed.
    pub fn message(&self) -> Option<Message> {
        let mut message = Message::from_vec(&self.bytes).ok()?;
        message.metadata.response_code = self.code;
        Some(message)
    }

    /// Append it for a client, its times to live less by `age` seconds. When it is longer than the client takes, only
    /// that is said (the TC bit), and the client asks over TCP.
    pub fn write<B: AsRef<[u8]>>(&self, question: &Question<B>, stream: bool, age: u32, out: &mut Vec<u8>) {
        let start = out.len();
        let flags = u16::from(self.code.low()) | if self.authoritative { AA } else { 0 };
        let edns = if question.edns.is_some() { 11 } else { 0 };
        // A question of another length is not the one that was answered.
        let same = question.section.as_ref().len() + HEADER == self.body;
        if !same || self.bytes.len() + edns > question.limit(stream) {
            question.head(flags | TC, 0, out);
            return question.close(self.code.high(), [0; 3], start, out);
        }
        question.head(flags, 0, out);
        out.extend(&self.bytes[self.body..]);
        for at in &self.ttls {
            let at = usize::from(*at);
            let place: Range<usize> = start + at..start + at + 4;
            let ttl = self.bytes[at..at + 4].try_into().map_or(0, u32::from_be_bytes);
            let left = ttl.saturating_sub(age);
            out[place].copy_from_slice(&left.to_be_bytes());
        }
        let count = |at| word(&self.bytes, at).unwrap_or(0);
        question.close(self.code.high(), [count(6), count(8), count(10)], start, out);
    }
}

/// Where the times to live of a message are, whose records begin at `at`.
fn ttls(bytes: &[u8], mut at: usize) -> Option<Vec<u16>> {
    let records = [6, 8, 10].iter().map(|i| word(bytes, *i).map(usize::from));
    let records: usize = records.sum::<Option<usize>>()?;
    let mut found = Vec::with_capacity(records.min(64));
    for _ in 0..records {
        let owner = skip_name(bytes, at)?;
        found.push(u16::try_from(owner + 4).ok()?);
        at = owner + 10 + usize::from(word(bytes, owner + 8)?);
    }
    (at == bytes.len()).then_some(found)
}

#[cfg(test)]
mod tests;
