//! The requests, each as etcd's own calls.

use super::session::{Failed, Sessions};
use super::trouble::Trouble;
use crate::control::cluster::{Answer, Entry, LeaseId, Revision, StoreError};
use crate::control::flannel::{SubnetKey, config_key, subnets_key};
use etcd_client::{
    Compare, CompareOp, GetOptions, GetResponse, KeyValue, LeaseGrantOptions, PutOptions, Txn, TxnOp,
    TxnOpResponse,
};

/// Most keys asked for at once; fewer when their values are large.
const PAGE: i64 = 1000;
/// Longest value that is passed on; what is behind that is cut off. A lease has some 300 bytes.
const MAX_VALUE: usize = 64 << 10;

/// The keys of the network.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    /// `<prefix>/config`.
    pub config: Vec<u8>,
    /// `<prefix>/subnets`, as flannel lists it: without a slash.
    pub subnets: Vec<u8>,
    /// The first key behind all that begin so.
    pub end: Vec<u8>,
}

impl Keys {
    pub fn new(prefix: &str) -> Keys {
        let subnets = subnets_key(prefix).into_bytes();
        let mut end = subnets.clone();
        if let Some(last) = end.last_mut() {
            *last += 1; // An 's'.
        }
        Keys {
            prefix: prefix.into(),
            config: config_key(prefix).into_bytes(),
            subnets,
            end,
        }
    }

    /// The same of what podwire's nodes share: all that is below a prefix, which ends in a slash.
    pub fn shared(prefix: &str) -> Keys {
        let subnets = prefix.as_bytes().to_vec();
        let mut end = subnets.clone();
        if let Some(last) = end.last_mut() {
            *last += 1; // A slash.
        }
        Keys {
            prefix: prefix.into(),
            config: subnets.clone(),
            subnets,
            end,
        }
    }

    /// The key of a subnet.
    pub fn subnet(&self, key: &SubnetKey) -> Vec<u8> {
        key.etcd_key(&self.prefix).into_bytes()
    }
}

/// Of a key and its value, what the cluster knows.
pub(super) fn entry(kv: &KeyValue) -> Entry {
    let value = kv.value();
    Entry {
        key: kv.key().into(),
        value: value[..value.len().min(MAX_VALUE)].into(),
        created: kv.create_revision(),
        modified: kv.mod_revision(),
        lease: kv.lease(),
        ttl_s: None,
    }
}

/// Requests that find the store otherwise than they need it begin again, so many times.
const TRIES: usize = 3;

/// Read the configuration and all leases, of one revision. What is left of the leases is not told: that is a request
/// per lease, and thousands of them are not to be waited for.
pub(super) async fn list(sessions: &Sessions, keys: &Keys) -> Result<Answer, StoreError> {
    let mut page = PAGE;
    let mut tries = 0;
    'again: loop {
        tries += 1;
        let first = first_page(sessions, keys, &mut page).await?;
        let (cluster, revision, config, mut entries, mut more) = first;
        while more {
            let from = match entries.last() {
                Some(Entry { key, .. }) => [&key[..], b"\0"].concat(),
                None => keys.subnets.clone(),
            };
            let next = sessions
                .call(true, |mut session| {
                    let range = range(keys, page).with_revision(revision);
                    let from = from.clone();
                    async move { Ok(session.kv.get(from, Some(range)).await?) }
                })
                .await;
            match next {
                Ok(next) => {
                    entries.extend(next.kvs().iter().map(entry));
                    more = next.more() && !next.kvs().is_empty();
                }
                Err(failed) => match failed.trouble {
                    Trouble::TooLarge if page > 0 => page = smaller(page),
                    // The rest of that revision is gone meanwhile.
                    Trouble::Compacted if tries < TRIES => continue 'again,
                    _ => return Err(failed.tell(sessions.access())),
                },
            }
        }
        return Ok(Answer::Listed {
            cluster,
            revision,
            config,
            entries,
        });
    }
}

type FirstPage = (u64, Revision, Option<Vec<u8>>, Vec<Entry>, bool);

/// The configuration and the first leases, in one transaction and so of one revision.
async fn first_page(sessions: &Sessions, keys: &Keys, page: &mut i64) -> Result<FirstPage, StoreError> {
    loop {
        let asked = sessions
            .call(true, |mut session| {
                let config = TxnOp::get(keys.config.clone(), None);
                let subnets = TxnOp::get(keys.subnets.clone(), Some(range(keys, *page)));
                async move { Ok(session.kv.txn(Txn::new().and_then([config, subnets])).await?) }
            })
            .await;
        let answer = match asked {
            Err(failed) if failed.trouble == Trouble::TooLarge && *page > 0 => {
                *page = smaller(*page);
                continue;
            }
            other => other.map_err(|failed| failed.tell(sessions.access()))?,
        };
        let cluster = answer.header().map_or(0, |h| h.cluster_id());
        let revision = answer.header().map_or(0, |h| h.revision());
        let gets: Vec<GetResponse> = answer
            .op_responses()
            .into_iter()
            .filter_map(|r| match r {
                TxnOpResponse::Get(get) => Some(get),
                _ => None,
            })
            .collect();
        let [config, subnets] = &gets[..] else {
            return Err(StoreError::Other(
                "etcd answers a transaction with something else".into(),
            ));
        };
        let config = config.kvs().first().map(|kv| entry(kv).value);
        let entries = subnets.kvs().iter().map(entry).collect();
        let more = subnets.more() && !subnets.kvs().is_empty();
        return Ok((cluster, revision, config, entries, more));
    }
}

/// At most `page` keys of the subnets; one key without its value when `page` is zero.
fn range(keys: &Keys, page: i64) -> GetOptions {
    let options = GetOptions::new()
        .with_range(keys.end.clone())
        .with_limit(page.max(1));
    if page == 0 {
        options.with_keys_only()
    } else {
        options
    }
}

fn smaller(page: i64) -> i64 {
    page / 4
}

/// The revision the store is at, by all its members' agreement.
pub(super) async fn revision(sessions: &Sessions, keys: &Keys) -> Result<Revision, StoreError> {
    let asked = sessions
        .call(true, |mut session| {
            let config = keys.config.clone();
            async move {
                Ok(session
                    .kv
                    .get(config, Some(GetOptions::new().with_count_only()))
                    .await?)
            }
        })
        .await;
    let answer = asked.map_err(|failed| failed.tell(sessions.access()))?;
    Ok(answer.header().map_or(0, |h| h.revision()))
}

/// What must hold for a write.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expect {
    /// Nobody has the key.
    Free,
    /// It was last written at this revision.
    Modified(Revision),
}

impl Expect {
    fn compare(self, key: &[u8]) -> Compare {
        match self {
            Expect::Free => Compare::version(key, CompareOp::Equal, 0),
            Expect::Modified(revision) => Compare::mod_revision(key, CompareOp::Equal, revision),
        }
    }
}

/// Write a key with a lease of its own, or without any, if it is as expected. The lease is given back when it is not;
/// when the outcome is not known it is left to expire, since the key may hang on it.
pub(super) async fn write(
    sessions: &Sessions,
    key: Vec<u8>,
    value: Vec<u8>,
    expect: Expect,
    ttl_s: Option<i64>,
) -> Result<Answer, StoreError> {
    let tell = |failed: Failed| failed.tell(sessions.access());
    let lease: LeaseId = match ttl_s {
        None => 0,
        Some(ttl) => {
            // Done twice, it leaves a lease without keys, which expires.
            let granted = sessions
                .call(true, |mut session| async move {
                    Ok(session.lease.grant(ttl, Some(LeaseGrantOptions::new())).await?)
                })
                .await;
            granted.map_err(tell)?.id()
        }
    };
    let asked = sessions
        .call(false, |mut session| {
            let put = TxnOp::put(
                key.clone(),
                value.clone(),
                Some(PutOptions::new().with_lease(lease)),
            );
            let txn = Txn::new().when([expect.compare(&key)]).and_then([put]);
            async move { Ok(session.kv.txn(txn).await?) }
        })
        .await;
    let answer = asked.map_err(tell)?;
    if answer.succeeded() {
        let revision = answer.header().map_or(0, |h| h.revision());
        return Ok(Answer::Written { revision, lease });
    }
    if lease != 0 {
        // Not worth more than a try: it expires anyway.
        let back = sessions.call(true, |mut session| async move {
            Ok(session.lease.revoke(lease).await?)
        });
        if let Err(failed) = back.await {
            log::debug!("lease {lease:x} is left to expire: {:?}", failed.trouble);
        }
    }
    Ok(Answer::Otherwise)
}

/// Delete a key if it is as expected.
pub(super) async fn delete(
    sessions: &Sessions,
    key: Vec<u8>,
    modified: Revision,
) -> Result<Answer, StoreError> {
    let asked = sessions
        .call(false, |mut session| {
            let delete = TxnOp::delete(key.clone(), None);
            let txn = Txn::new()
                .when([Expect::Modified(modified).compare(&key)])
                .and_then([delete]);
            async move { Ok(session.kv.txn(txn).await?) }
        })
        .await;
    let answer = asked.map_err(|failed| failed.tell(sessions.access()))?;
    Ok(if answer.succeeded() {
        Answer::Deleted
    } else {
        Answer::Otherwise
    })
}

/// What is left of a lease.
pub(super) async fn time_to_live(sessions: &Sessions, lease: LeaseId) -> Result<Answer, StoreError> {
    let asked = sessions
        .call(true, |mut session| async move {
            Ok(session.lease.time_to_live(lease, None).await?)
        })
        .await;
    let answer = asked.map_err(|failed| failed.tell(sessions.access()))?;
    // etcd says -1 for a lease it does not have.
    Ok(Answer::Left {
        ttl_s: Some(answer.ttl()).filter(|ttl| *ttl >= 0),
    })
}
