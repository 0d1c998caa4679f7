//! Figures of the metrics page as the console takes them. Pure. The page is the one place where counters are; reading it once a
//! second costs less than counting everything twice.

use std::collections::BTreeMap;

/// Value of a label in `name{a="b",c="d"} 1`.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let rest = labels.split(['{', ',']).find_map(|part| part.strip_prefix(name)?.strip_prefix("=\""))?;
    rest.split('"').next()
}

/// Samples of one name: labels, value.
fn samples<'a>(page: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    page.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.as_bytes().first()? {
            b' ' => ("", rest),
            // A tenant's name may hold anything but has its quotes escaped; the value is behind the last brace.
            b'{' => rest.rsplit_once('}')?,
            _ => return None,
        };
        Some((labels, value.split_whitespace().next()?.parse().ok()?))
    })
}

/// Sums by the value of a label.
pub fn by_label(page: &str, name: &str, of: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for (labels, value) in samples(page, name) {
        *sums.entry(label(labels, of).unwrap_or_default().to_owned()).or_insert(0.0) += value;
    }
    sums
}

/// A histogram's bounds and how much is below each, in order, over all other labels; the last bound is null for everything.
pub fn buckets(page: &str, name: &str) -> Vec<(Option<f64>, f64)> {
    let mut sums: Vec<(Option<f64>, f64)> = Vec::new();
    for (labels, value) in samples(page, &format!("{name}_bucket")) {
        let bound = label(labels, "le").and_then(|le| le.parse::<f64>().ok()).filter(|le| le.is_finite());
        match sums.iter_mut().find(|(b, _)| *b == bound) {
            Some((_, sum)) => *sum += value,
            None => sums.push((bound, value)),
        }
    }
    sums.sort_by(|a, b| a.0.unwrap_or(f64::INFINITY).total_cmp(&b.0.unwrap_or(f64::INFINITY)));
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_sum_over_the_labels_that_nobody_asked_for() {
        let page = "# TYPE x histogram\nx_bucket{le=\"0.5\",tenant=\"a\"} 1\nx_bucket{le=\"0.5\",tenant=\"b\"} 2\n\
                    x_bucket{tenant=\"a} 9\",le=\"+Inf\"} 5\nx_bucket{le=\"0.1\"} 1\nx_sum 3.5\n\
                    y_total{kind=\"in\",tenant=\"a\"} 4\ny_total{tenant=\"b\",kind=\"in\"} 5\nyy_total{kind=\"in\"} 99\n";
        assert_eq!(buckets(page, "x"), [(Some(0.1), 1.0), (Some(0.5), 3.0), (None, 5.0)]);
        assert_eq!(by_label(page, "y_total", "kind"), BTreeMap::from([("in".to_owned(), 9.0)]));
        assert!(buckets(page, "z").is_empty());
    }

    #[test]
    fn our_own_page_has_what_the_console_reads() {
        let metrics = crate::metrics::Metrics::default();
        let page = metrics.page();
        assert_eq!(by_label(&page, "gateway_requests", "phase").len(), 3, "{page}");
        for name in ["gen_ai_server_time_to_first_token_seconds", "gen_ai_server_time_per_output_token_seconds"] {
            let found = buckets(&page, name);
            assert!(found.is_empty() || found.last().is_some_and(|b| b.0.is_none()), "{page}");
        }
    }
}
