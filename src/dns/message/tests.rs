use super::*;
use hickory_proto::op::{Edns as TheirEdns, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, CNAME, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record};
use proptest::prelude::*;

fn labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..6)
}

fn theirs(id: u16, labels: &[Vec<u8>], kind: u16, edns: Option<(u16, bool)>) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = id & 1 == 1;
    message.metadata.checking_disabled = id & 2 == 2;
    let name = Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap();
    message.add_query(Query::query(name, RecordType::from(kind)));
    message.edns = edns.map(|(payload, dnssec_ok)| {
        let mut edns = TheirEdns::new();
        edns.set_max_payload(payload).set_dnssec_ok(dnssec_ok);
        edns
    });
    message
}

fn reread(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).unwrap_or_else(|e| panic!("{e}: {bytes:?}"))
}

proptest! {
    #[test]
    fn questions_are_read_as_others_wrote_them(
        id: u16,
        labels in labels(),
        // OPT and signatures are no types to ask for.
        kind in prop_oneof![Just(1u16), Just(28), Just(12), Just(255), Just(65), Just(3999)],
        edns: Option<(u16, bool)>,
    ) {
        let message = theirs(id, &labels, kind, edns);
        let bytes = message.to_vec().unwrap();
        let question = Question::read(&bytes).unwrap();
        prop_assert_eq!(question.id, id);
        prop_assert!(name::name_of(question.name()).eq_case(message.queries[0].name()));
        prop_assert_eq!((u16::from(question.kind()), question.class()), (kind, 1));
        prop_assert_eq!(question.recursion_desired(), id & 1 == 1);
        prop_assert_eq!(question.checking_disabled(), id & 2 == 2);
        let said = question.edns.map(|e| (e.payload.max(512), e.dnssec_ok));
        prop_assert_eq!(said, edns.map(|(payload, ok)| (payload.max(512), ok)));
        let mut again = Vec::new();
        write_question(id, question.section, id & 2 == 2, edns.map(|e| e.1), &mut again);
        let again = reread(&again);
        prop_assert!(again.metadata.recursion_desired);
        prop_assert_eq!(again.queries, message.queries);
    }

    #[test]
    fn whatever_comes_is_read_or_told_to_be_wrong(bytes in prop::collection::vec(any::<u8>(), 0..80), query: bool) {
        let mut bytes = bytes;
        if query && bytes.len() > 12 {
            bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        let mut out = Vec::new();
        match Question::read(&bytes) {
            Ok(question) => {
                prop_assert!(question.name().len() <= name::MAX_NAME);
                question.key(&mut [0; 260]);
                question.write_code(ResponseCode::ServFail, &mut out);
                let told = reread(&out);
                prop_assert_eq!((told.metadata.id, told.metadata.response_code), (question.id, ResponseCode::ServFail));
                prop_assert_eq!(told.queries[0].query_type(), question.kind());
            }
            Err(flaw) => {
                let told = write_flaw(&bytes, flaw, &mut out);
                prop_assert_eq!(told, flaw.code().is_some());
                if told {
                    let told = reread(&out);
                    prop_assert_eq!(Some(told.metadata.response_code), flaw.code());
                    prop_assert_eq!(told.metadata.id.to_be_bytes(), [bytes[0], bytes[1]]);
                }
            }
        }
    }

    #[test]
    fn answers_keep_their_records_and_the_limit(
        count in 0usize..60,
        ttls in prop::collection::vec(0u32..100_000, 60),
        upper: bool,
        edns: Option<(u16, bool)>,
        stream: bool,
        age in 0u32..200_000,
        code in prop_oneof![Just(ResponseCode::NoError), Just(ResponseCode::NXDomain), Just(ResponseCode::BADVERS)],
    ) {
        let plain = theirs(7, &[b"web".to_vec(), b"default".to_vec(), b"pod".to_vec()], 1, None);
        let mut message = Message::response(7, OpCode::Query);
        message.metadata.response_code = code;
        message.metadata.authoritative = true;
        message.metadata.authentic_data = true;
        message.add_queries(plain.queries.clone());
        let owner = plain.queries[0].name().clone();
        for (i, ttl) in ttls.iter().take(count).enumerate() {
            let data = match i % 3 {
                0 => RData::A(A::new(10, 0, 0, i as u8)),
                1 => RData::TXT(TXT::new(vec!["t".repeat(i)])),
                _ => RData::CNAME(CNAME(owner.base_name())),
            };
            let record = Record::from_rdata(owner.clone(), *ttl, data);
            match i % 4 {
                0 | 1 => message.add_answer(record),
                2 => message.add_authority(record),
                _ => message.add_additional(record),
            };
        }
        let answer = Answer::of(message.clone()).unwrap();
        prop_assert_eq!(answer.code(), code);
        prop_assert_eq!(&answer.message().unwrap().answers, &message.answers);
        let spelled = if upper { "WEB" } else { "web" };
        let labels: Vec<Vec<u8>> = [spelled, "default", "POD"].map(|l| l.as_bytes().to_vec()).to_vec();
        let asked = theirs(0xbeef | 1, &labels, 1, edns).to_vec().unwrap();
        let question = Question::read(&asked).unwrap();
        let mut out = vec![1, 2, 3];
        answer.write(&question, stream, age, &mut out);
        let out = &out[3..];
        prop_assert!(out.len() <= question.limit(stream));
        let told = reread(out);
        prop_assert_eq!(told.metadata.id, question.id);
        prop_assert!(told.metadata.authoritative || told.metadata.truncation);
        prop_assert!(!told.metadata.authentic_data && told.metadata.recursion_available);
        let shown = if edns.is_some() { code } else { ResponseCode::from_low(code.low()) };
        // BADVERS and BADSIG are one number.
        prop_assert_eq!(u16::from(told.metadata.response_code), u16::from(shown));
        prop_assert!(told.queries[0].name().eq_case(&name::name_of(question.name())));
        prop_assert_eq!(told.edns.is_some(), edns.is_some());
        if told.metadata.truncation {
            prop_assert_eq!(told.all_sections().count(), 0);
            prop_assert!(!stream);
        } else {
            // Names are the same but for their spelling, which is that of who asks.
            let old = |r: &Record| (r.ttl.saturating_sub(age), r.data.clone());
            let new = |r: &Record| (r.ttl, r.data.clone());
            let lower = |d: (u32, RData)| (d.0, format!("{}", d.1).to_lowercase());
            prop_assert!(
                told.all_sections().map(|r| lower(new(r))).eq(message.all_sections().map(|r| lower(old(r))))
            );
            prop_assert!(told.answers.iter().all(|r| r.name.eq_case(told.queries[0].name())));
        }
    }
}

#[test]
fn signatures_are_stepped_over_and_classes_are_told() {
    let mut message = theirs(1, &[b"a".to_vec()], 1, Some((4096, true)));
    message.queries[0].set_query_class(DNSClass::CH);
    let mut bytes = message.to_vec().unwrap();
    // A TSIG record at the end: name, type 250, class ANY, TTL, length.
    bytes.extend([1, b'k', 0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 3, 9, 9, 9]);
    bytes[11] += 1;
    let question = Question::read(&bytes).unwrap();
    assert_eq!((question.class(), question.edns.unwrap().payload), (3, 4096));
    assert!(question.dnssec_ok());
    bytes.pop();
    assert_eq!(Question::read(&bytes), Err(Flaw::Malformed));
}
