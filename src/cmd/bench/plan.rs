//! What can be measured, and which of it is asked for.

use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A kind of load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Bulk over one TCP connection; what it costs the processors is measured beside it.
    Tcp1,
    /// Bulk over four TCP connections.
    Tcp4,
    /// UDP datagrams of 64 bytes, as many as go.
    Udp64,
    /// Requests and responses of 64 bytes over one TCP connection.
    Rr,
}

impl Work {
    /// All of them, in the order of the table.
    pub const ALL: [Work; 4] = [Work::Tcp1, Work::Tcp4, Work::Udp64, Work::Rr];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Work::Tcp1 => "tcp1",
            Work::Tcp4 => "tcp4",
            Work::Udp64 => "udp64",
            Work::Rr => "rr",
        }
    }
}

/// The way between the two pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// Through the tunnel.
    Cross,
    /// On one node.
    Same,
}

impl Path {
    /// Both.
    pub const ALL: [Path; 2] = [Path::Cross, Path::Same];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Path::Cross => "cross",
            Path::Same => "same",
        }
    }
}

/// What lies between the two nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Underlay {
    /// A veth made like a wire: MTU-sized packets, merged again by the receiver.
    Wire,
    /// A veth as it is: trains of packets cross it whole.
    Veth,
}

impl fmt::Display for Underlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Underlay::Wire => "wire",
            Underlay::Veth => "veth",
        })
    }
}

/// What is measured as one row: a work, a path, and the underlay where the path has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// The load.
    pub work: Work,
    /// The way.
    pub path: Path,
    /// What is between the nodes; none on one node.
    pub underlay: Option<Underlay>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.work.name(), self.path.name())?;
        match self.underlay {
            Some(underlay) => write!(f, " over {underlay}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Case {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// A choice of cases by name: `tcp1` both ways, or `tcp1-cross` one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Only {
    work: Work,
    path: Option<Path>,
}

impl FromStr for Only {
    type Err = String;

    fn from_str(s: &str) -> Result<Only, String> {
        let (work, path) = match s.split_once('-') {
            Some((work, path)) => (work, Some(path)),
            None => (s, None),
        };
        let work = Work::ALL.into_iter().find(|w| w.name() == work);
        let path = path.map(|path| Path::ALL.into_iter().find(|p| p.name() == path));
        match (work, path) {
            (Some(work), None) => Ok(Only { work, path: None }),
            (Some(work), Some(Some(path))) => Ok(Only {
                work,
                path: Some(path),
            }),
            _ => Err("it is one of tcp1, tcp4, udp64 and rr, alone or with -cross or -same".into()),
        }
    }
}

impl fmt::Display for Only {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.work.name())?;
        self.path.map_or(Ok(()), |path| write!(f, "-{}", path.name()))
    }
}

/// The cases that are asked for, in the order of the table; nothing chosen means everything.
pub fn cases(only: &[Only], underlays: &[Underlay]) -> Vec<Case> {
    let chosen = |work: Work, path: Path| {
        let fits = |o: &Only| o.work == work && o.path.is_none_or(|p| p == path);
        only.is_empty() || only.iter().any(fits)
    };
    let of = |path: Path, underlay: Option<Underlay>| {
        let works = Work::ALL.into_iter().filter(move |work| chosen(*work, path));
        works.map(move |work| Case { work, path, underlay })
    };
    let cross = underlays.iter().flat_map(|u| of(Path::Cross, Some(*u)));
    cross.chain(of(Path::Same, None)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(only: &[&str], underlays: &[Underlay]) -> Vec<String> {
        let only: Vec<Only> = only.iter().map(|o| o.parse().unwrap()).collect();
        cases(&only, underlays).iter().map(Case::to_string).collect()
    }

    #[test]
    fn a_choice_names_works_and_ways() {
        let both = [Underlay::Wire, Underlay::Veth];
        assert_eq!(names(&[], &both).len(), 12);
        assert_eq!(
            names(&["tcp1-cross", "rr"], &both),
            [
                "tcp1-cross over wire",
                "rr-cross over wire",
                "tcp1-cross over veth",
                "rr-cross over veth",
                "rr-same"
            ]
        );
        assert_eq!(names(&["udp64-same"], &[Underlay::Veth]), ["udp64-same"]);
        for wrong in ["", "tcp", "tcp1-", "tcp1-far", "-cross", "rr-cross-same"] {
            assert!(wrong.parse::<Only>().is_err(), "{wrong:?}");
        }
        for right in ["tcp4", "udp64-same"] {
            assert_eq!(right.parse::<Only>().unwrap().to_string(), right);
        }
    }
}
