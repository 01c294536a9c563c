//! What a node's DNS counts: how questions were answered, and what went nowhere.

macro_rules! kinds {
    ($(#[doc = $of:literal])+ $kind:ident; $($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        $(#[doc = $of])+
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $kind { $($(#[doc = $doc])+ $name,)+ }

        impl $kind {
            /// All of them, in the order of their declaration.
            pub const ALL: &'static [$kind] = &[$($kind::$name,)+];

            /// The stable label used in JSON and metrics.
            pub fn label(self) -> &'static str {
                match self { $($kind::$name => $label,)+ }
            }
        }
    };
}

kinds! {
    /// How a question was answered.
    AnswerKind;
    /// From the node's own names.
    Zone = "zone",
    /// From the cache.
    Cache = "cache",
    /// By one of the host's resolvers.
    Upstream = "upstream",
    /// With a failure (SERVFAIL): no resolver, or none that answered well.
    Failed = "failed",
    /// Not to be answered: a zone transfer, another class, or without recursion.
    Refused = "refused",
    /// It could not be understood.
    Malformed = "malformed",
}

kinds! {
    /// Why a message of a client got no answer, or a failure at once.
    DnsDrop;
    /// Shorter than a header.
    Short = "short",
    /// An answer that nobody asked for.
    Response = "response",
    /// The client asked the same before and waits.
    Again = "again",
    /// Too many questions are under way; answered with a failure.
    Full = "full",
    /// Too many questions of this client are under way; answered with a failure.
    ClientFull = "client_full",
    /// Too many clients wait for this answer; answered with a failure.
    Crowded = "crowded",
    /// The client's socket takes no more.
    Send = "send",
    /// The client went away before its answer came.
    Gone = "gone",
    /// A TCP client was turned away, or closed for one that came later.
    Clients = "clients",
    /// A TCP client was too slow.
    Slow = "slow",
}

/// The counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsCounters {
    answers: [u64; AnswerKind::ALL.len()],
    drops: [u64; DnsDrop::ALL.len()],
    /// Messages that came over UDP.
    pub messages_udp: u64,
    /// Messages that came over TCP.
    pub messages_tcp: u64,
}

impl DnsCounters {
    /// Count an answer.
    pub fn answered(&mut self, kind: AnswerKind) {
        self.answers[kind as usize] += 1;
    }

    /// Count what went nowhere.
    pub fn dropped(&mut self, why: DnsDrop) {
        self.drops[why as usize] += 1;
    }

    /// How many answers of a kind there were.
    pub fn answers(&self, kind: AnswerKind) -> u64 {
        self.answers[kind as usize]
    }

    /// How often something went nowhere for this reason.
    pub fn drops(&self, why: DnsDrop) -> u64 {
        self.drops[why as usize]
    }
}
