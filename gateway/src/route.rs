//! What a path asks for. Pure.

use http::Method;

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Generate tokens or embeddings: admitted, tracked.
    Inference {
        /// Tokens come out.
        generates: bool,
    },
    /// Something about text that costs the engine next to nothing: sent to an engine that has the model.
    Aside,
    /// The list of models of all engines.
    Models,
    /// What would happen to an inference request.
    Explain,
    /// None of ours.
    Other,
    /// One of ours, with the wrong method; which would be right.
    WrongMethod(&'static str),
}

/// The API's own paths.
static PATHS: [(&str, Method, Route); 9] = [
    ("/v1/chat/completions", Method::POST, Route::Inference { generates: true }),
    ("/v1/completions", Method::POST, Route::Inference { generates: true }),
    ("/v1/responses", Method::POST, Route::Inference { generates: true }),
    ("/v1/embeddings", Method::POST, Route::Inference { generates: false }),
    ("/tokenize", Method::POST, Route::Aside),
    ("/detokenize", Method::POST, Route::Aside),
    ("/v1/models", Method::GET, Route::Models),
    ("/v1/explain", Method::POST, Route::Explain),
    ("/v1/models/", Method::GET, Route::Aside),
];

impl Route {
    /// Of a request's method and path.
    pub fn of(method: &Method, path: &str) -> Self {
        let known = PATHS.iter().find(|(p, ..)| if p.ends_with('/') { path.starts_with(p) } else { *p == path });
        match known {
            None => Self::Other,
            Some((_, wanted, route)) if method == wanted => *route,
            Some((_, wanted, _)) => Self::WrongMethod(wanted.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_apart() {
        for (method, path, want) in [
            (Method::POST, "/v1/chat/completions", Route::Inference { generates: true }),
            (Method::POST, "/v1/embeddings", Route::Inference { generates: false }),
            (Method::GET, "/v1/chat/completions", Route::WrongMethod("POST")),
            (Method::GET, "/v1/models", Route::Models),
            (Method::GET, "/v1/models/a/b", Route::Aside),
            (Method::GET, "/v1/modelsx", Route::Other),
            (Method::POST, "/v1/completions/", Route::Other),
            (Method::POST, "//v1/completions", Route::Other),
        ] {
            assert_eq!(Route::of(&method, path), want, "{method} {path}");
        }
    }
}
