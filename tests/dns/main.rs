//! The DNS of a real node, asked by dig and by clients that behave worse, with a resolver of the test's own behind it.

mod clients;
mod fake;
mod names;
mod node;
mod services;
mod upstream;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};

/// A question as a C library asks it: recursion, no EDNS.
fn question(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}
