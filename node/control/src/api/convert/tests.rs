mod answers;
mod requests;

use std::collections::BTreeMap;

use sandkeeper_proto::v1;
use sandkeeper_statemachine::Actor;

fn actor() -> Actor {
    Actor::Client("test".into())
}

fn good() -> v1::CreateSandboxRequest {
    v1::CreateSandboxRequest { request_id: "r1".into(), name: "web".into(), ..Default::default() }
}

fn one(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

fn cpu(value: i64) -> v1::Resources {
    v1::Resources { cpu_millis: Some(value), memory_bytes: None }
}
