//! How far a connection has come, told from what passes by, and how long it is kept then.

use crate::model::{ConnState, Duration, Transport};
use crate::wire::Headers;
use crate::wire::bytes::array;

/// TCP and SCTP between their handshake and their end: 2 hours and 4 minutes (RFC 5382 REQ-5).
const ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// The same during handshake and end: 4 minutes (RFC 5382 REQ-5).
const TRANSITORY: Duration = Duration::from_secs(4 * 60);
/// UDP after an answer: 5 minutes (RFC 4787 REQ-5).
const UDP_ANSWERED: Duration = Duration::from_secs(5 * 60);
/// UDP that nobody has answered: most of it is one question, and the answer is late or lost.
const UDP_UNANSWERED: Duration = Duration::from_secs(30);

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The client.
    Original,
    /// The backend.
    Reply,
}

/// What a packet says about its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Signal {
    /// It asks for a new connection.
    pub opens: bool,
    /// It says yes to that.
    pub accepts: bool,
    /// Its sender is done (TCP's FIN).
    pub ends: bool,
    /// Its sender has given up (TCP's RST, SCTP's ABORT), or both are done (SCTP's SHUTDOWN COMPLETE).
    pub breaks: bool,
}

impl Signal {
    /// What the packet says. Its transport header was found to be all there.
    #[inline]
    pub fn of(transport: Transport, frame: &[u8], h: &Headers) -> Signal {
        match transport {
            Transport::Udp => Signal::default(),
            Transport::Tcp => {
                let [flags] = array(frame, h.l4 + 13);
                let (fin, syn, rst, ack) = (flags & 1, flags & 2, flags & 4, flags & 16);
                Signal {
                    opens: syn != 0 && ack == 0 && rst == 0,
                    accepts: syn != 0 && ack != 0 && rst == 0,
                    ends: fin != 0,
                    breaks: rst != 0,
                }
            }
            Transport::Sctp => {
                // The first chunk: INIT, INIT ACK, ABORT and SHUTDOWN COMPLETE come alone (RFC 9260 section 6.10).
                let [chunk] = match h.end > h.l4 + SCTP_LEN {
                    true => array(frame, h.l4 + SCTP_LEN),
                    false => [0],
                };
                Signal {
                    opens: chunk == 1,
                    accepts: chunk == 2,
                    ends: false,
                    breaks: matches!(chunk, 6 | 14),
                }
            }
        }
    }
}

/// SCTP's common header.
pub(super) const SCTP_LEN: usize = 12;

/// What is remembered of a connection's course.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Course {
    pub state: ConnState,
    /// The backend has said something.
    pub answered: bool,
    /// It was seen from its beginning.
    requested: bool,
    /// The first answer was one of another connection.
    challenged: bool,
    /// The client is done, the backend is.
    ended: [bool; 2],
}

impl Course {
    /// Of a connection whose first packet is this.
    pub fn new(signal: Signal) -> Course {
        let mut course = Course {
            state: ConnState::Opening,
            answered: false,
            requested: signal.opens,
            challenged: false,
            ended: [false; 2],
        };
        course.ended[0] = signal.ends;
        course
    }

    /// Take notice of a packet. Whether the state is another one now.
    #[inline]
    pub fn step(&mut self, transport: Transport, direction: Direction, signal: Signal) -> bool {
        let before = self.state;
        let reply = direction == Direction::Reply;
        if signal.breaks {
            self.state = ConnState::Closing;
            return before != self.state;
        }
        self.ended[usize::from(reply)] |= signal.ends;
        match self.state {
            ConnState::Opening if reply => {
                let other = self.requested && !self.answered && transport == Transport::Tcp;
                self.challenged = (self.challenged || other) && !signal.accepts && !signal.opens;
                self.answered = true;
                if transport == Transport::Udp {
                    self.state = ConnState::Open;
                }
            }
            // The handshake is done when the client goes on after the answer.
            ConnState::Opening if self.answered && !signal.opens => self.state = ConnState::Open,
            _ => {}
        }
        if self.ended == [true; 2] {
            self.state = ConnState::Closing;
        }
        before != self.state
    }

    /// Whether the backend has answered by what it says on another connection of the same ends, which was there before
    /// (RFC 5961 section 4.2), and the client now breaks that off without knowing.
    pub fn breaks_another(&self, signal: Signal) -> bool {
        signal.breaks && self.challenged && self.state == ConnState::Opening
    }

    /// The client's next try is its first one.
    pub fn begin_again(&mut self) {
        (self.answered, self.challenged) = (false, false);
    }

    /// Whether the client has ended its side.
    pub fn is_client_done(&self) -> bool {
        self.ended[0]
    }

    /// For how long it is kept when nothing passes.
    pub fn patience(&self, transport: Transport) -> Duration {
        match (transport, self.state) {
            (Transport::Udp, ConnState::Open) => UDP_ANSWERED,
            (Transport::Udp, _) => UDP_UNANSWERED,
            (_, ConnState::Open) => ESTABLISHED,
            _ => TRANSITORY,
        }
    }

    /// Whether it may give way to a new one.
    pub fn gives_way(&self) -> bool {
        self.state != ConnState::Open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ConnState::{Closing, Open, Opening};
    use Direction::{Original, Reply};

    const SYN: Signal = Signal {
        opens: true,
        accepts: false,
        ends: false,
        breaks: false,
    };
    const ACK: Signal = Signal {
        opens: false,
        accepts: false,
        ends: false,
        breaks: false,
    };
    const FIN: Signal = Signal { ends: true, ..ACK };
    const RST: Signal = Signal { breaks: true, ..ACK };

    /// Each step: who, what, the state then, and the time it is kept for.
    type Step = (Direction, Signal, ConnState, u64);

    #[test]
    fn courses() {
        use Transport::{Sctp, Tcp, Udp};
        let hours = 2 * 3600 + 240;
        let stories: &[(&str, Transport, Signal, &[Step])] = &[
            (
                "TCP opens, talks, closes from both sides",
                Tcp,
                SYN,
                &[
                    (Original, SYN, Opening, 240),
                    (Reply, ACK, Opening, 240),
                    (Original, ACK, Open, hours),
                    (Original, FIN, Open, hours),
                    (Reply, ACK, Open, hours),
                    (Reply, FIN, Closing, 240),
                    (Original, ACK, Closing, 240),
                ],
            ),
            ("TCP refused", Tcp, SYN, &[(Reply, RST, Closing, 240)]),
            (
                "TCP client gives up",
                Tcp,
                SYN,
                &[(Reply, ACK, Opening, 240), (Original, RST, Closing, 240)],
            ),
            (
                "TCP found in its midst",
                Tcp,
                ACK,
                &[(Reply, ACK, Opening, 240), (Original, ACK, Open, hours)],
            ),
            (
                "UDP",
                Udp,
                ACK,
                &[
                    (Original, ACK, Opening, 30),
                    (Reply, ACK, Open, 300),
                    (Original, ACK, Open, 300),
                ],
            ),
            (
                "SCTP",
                Sctp,
                SYN,
                &[
                    (Reply, ACK, Opening, 240),
                    (Original, ACK, Open, hours),
                    (Reply, RST, Closing, 240),
                ],
            ),
        ];
        for (name, transport, first, steps) in stories {
            let mut course = Course::new(*first);
            for (at, (direction, signal, state, secs)) in steps.iter().enumerate() {
                let before = course.state;
                let changed = course.step(*transport, *direction, *signal);
                assert_eq!(course.state, *state, "{name}, step {at}");
                assert_eq!(changed, before != *state, "{name}, step {at}");
                assert_eq!(
                    course.patience(*transport),
                    Duration::from_secs(*secs),
                    "{name}, step {at}"
                );
            }
        }
    }
}
