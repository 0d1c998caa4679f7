//! Stop strings over a stream of text deltas.
//!
//! A stop string may begin in one token and end three tokens later, so text that could still become one is held back:
//! at every moment the longest suffix that is a proper prefix of some stop string. Everything before it is final.
//! Sizes: the held text is shorter than the longest stop string, so the work per token is bounded by the stop strings and
//! the delta, never by the length of the sequence.

/// The stop strings of one request and the text held back for them.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// Empty stop strings match nothing and are ignored.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes `delta` and appends to `out` the text that is final now. True when a stop string is complete: `out` then
    /// holds the text before the one that completed first, and the sequence is over.
    ///
    /// With `armed` false (before `min_tokens`) nothing is matched and nothing is held back.
    pub fn push(&mut self, delta: &str, armed: bool, out: &mut String) -> bool {
        if self.stops.is_empty() {
            out.push_str(delta);
            return false;
        }
        self.held.push_str(delta);
        if !armed {
            out.push_str(&self.held);
            self.held.clear();
            return false;
        }
        // The one completed first, whatever the cut of the text into deltas; then the longest that ends there.
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at)));
        if let Some((_, at)) = found.min() {
            out.push_str(&self.held[..at]);
            self.held.clear();
            return true;
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let done = self.held.len() - keep;
        out.push_str(&self.held[..done]);
        self.held.drain(..done);
        false
    }

    /// The sequence ended for another reason: what was held back is ordinary text after all.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }
}

/// Bytes of the longest suffix of `text` that is a proper prefix of `stop`. Prefixes end at character boundaries, so the
/// suffix begins at one.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(at, _)| at)
        .filter(|&len| len > 0 && len <= text.len())
        .filter(|&len| text.as_bytes().ends_with(&stop.as_bytes()[..len]))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deltas handed out per push, whether it stopped, and what `finish` adds.
    fn run(stops: &[&str], pushes: &[&str]) -> (Vec<String>, bool, String) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut outs = Vec::new();
        for push in pushes {
            let mut out = String::new();
            let stopped = matcher.push(push, true, &mut out);
            outs.push(out);
            if stopped {
                return (outs, true, String::new());
            }
        }
        let mut rest = String::new();
        matcher.finish(&mut rest);
        (outs, false, rest)
    }

    #[test]
    fn stop_strings_are_found_across_pushes_and_never_leak() {
        type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str], bool, &'a str);
        let cases: &[Case<'_>] = &[
            // stops, pushes, deltas, stopped, rest
            (&[], &["a", "b"], &["a", "b"], false, ""),
            (&["END"], &["one ", "EN", "D two"], &["one ", "", ""], true, ""),
            (&["END"], &["xEND"], &["x"], true, ""),
            (&["END"], &["E", "N", "x"], &["", "", "ENx"], false, ""),
            (&["END"], &["E", "N"], &["", ""], false, "EN"),
            (&["END"], &["EEN", "D"], &["E", ""], true, ""),
            (&["aab"], &["aa", "ab"], &["", "a"], true, ""),
            (&["\n\n"], &["a\n", "b\n", "\n"], &["a", "\nb", ""], true, ""),
            (&["b", "abc"], &["xa", "bc"], &["x", "a"], true, ""),
            (&["。", "你好"], &["你", "们。"], &["", "你们"], true, ""),
            (&[""], &["a"], &["a"], false, ""),
        ];
        for (stops, pushes, deltas, stopped, rest) in cases {
            let (got_deltas, got_stopped, got_rest) = run(stops, pushes);
            assert_eq!(&got_deltas, deltas, "{stops:?} {pushes:?}");
            assert_eq!((got_stopped, got_rest.as_str()), (*stopped, *rest), "{stops:?} {pushes:?}");
        }
    }

    #[test]
    fn before_min_tokens_nothing_matches_and_nothing_is_held() {
        let mut matcher = StopMatcher::new(&["ab".to_string()]);
        let mut out = String::new();
        assert!(!matcher.push("xab", false, &mut out));
        assert!(!matcher.push("a", false, &mut out));
        assert_eq!(out, "xaba");
        // Armed now; the "a" already handed out is not reconsidered.
        assert!(!matcher.push("b", true, &mut out));
        assert_eq!(out, "xabab");
        assert!(matcher.push("ab", true, &mut out));
        assert_eq!(out, "xabab");
    }

    #[test]
    fn any_cut_of_the_text_gives_the_same_result() {
        let text = "the quick brown fox STOP never seen";
        let stops = [&["STOP", "STOPPED"][..], &["TO", "STOP"], &["x STOP ", "P"]];
        let expected = ["the quick brown fox ", "the quick brown fox S", "the quick brown fox STO"];
        for (size, (stops, expected)) in
            (1..=text.len()).flat_map(|size| stops.iter().zip(expected).map(move |case| (size, case)))
        {
            let pushes: Vec<&str> =
                text.as_bytes().chunks(size).map(|chunk| std::str::from_utf8(chunk).expect("ascii")).collect();
            let (deltas, stopped, _) = run(stops, &pushes);
            assert!(stopped);
            assert_eq!(deltas.concat(), expected, "pushes of {size}, stops {stops:?}");
        }
    }
}
