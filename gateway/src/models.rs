//! The models of all engines as one list.

use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::reply::Reply;
use crate::request::Incoming;

/// Answers `GET /v1/models`. While no engine has been heard, the question goes to one.
///
/// # Errors
/// If the client has left.
pub async fn list(
    gateway: &Gateway,
    incoming: &Incoming<'_>,
    reply: &mut Reply<'_>,
) -> Result<(), pingora_core::BError> {
    let lists: Vec<_> = incoming.setup.engines.iter().filter(|e| e.is_open()).map(|e| e.models()).collect();
    let union = union(lists.iter().flat_map(|models| models.iter()));
    if union.is_empty() {
        return gateway.pass(incoming, reply).await;
    }
    reply.json(200, json!({ "object": "list", "data": union }).to_string().into()).await
}

/// Each model once, as the first engine that has it describes it.
fn union<'a>(models: impl Iterator<Item = &'a Value>) -> Vec<&'a Value> {
    let mut seen: Vec<&Value> = Vec::new();
    for model in models {
        if !seen.iter().any(|m| m["id"] == model["id"]) {
            seen.push(model);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_model_is_listed_once() {
        let models = [json!({"id": "a", "x": 1}), json!({"id": "b"}), json!({"id": "a", "x": 2})];
        assert_eq!(union(models.iter()), [&models[0], &models[1]]);
    }
}
