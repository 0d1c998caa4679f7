//! The Grafana dashboards under `dashboards/grafana/`, made from `dashboards/panels.yaml`.
//!
//! `cargo xtask reference` writes them; a test holds them against their source and runs every query.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Grafana's grid has 24 columns.
const COLUMNS: u64 = 24;
const WIDTH: u64 = 8;
const HEIGHT: u64 = 8;
/// Version of Grafana's dashboard format that the files are written in.
const SCHEMA: u32 = 39;

/// The parsed source.
///
/// # Errors
/// If it cannot be read.
pub fn source() -> Result<Vec<Value>> {
    let file = stack::source_root()?.join("dashboards/panels.yaml");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    serde_yaml_ng::from_str(&text).with_context(|| file.display().to_string())
}

/// Each dashboard's place and text.
///
/// # Errors
/// If the source cannot be read.
pub fn files() -> Result<Vec<(PathBuf, String)>> {
    let root = stack::source_root()?;
    let file = |dashboard: &Value| {
        let uid = dashboard["uid"].as_str().context("a dashboard has no uid")?;
        let name = uid.trim_start_matches("flexnpu-");
        let text = serde_json::to_string_pretty(&page(dashboard))? + "\n";
        Ok((root.join(format!("dashboards/grafana/{name}.json")), text))
    };
    source()?.iter().map(file).collect()
}

/// Every query of every panel: where it stands and what it asks.
///
/// # Errors
/// If the source cannot be read.
pub fn queries() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for dashboard in &source()? {
        for panel in list(&dashboard["rows"]).iter().flat_map(|row| list(&row["panels"])) {
            for query in list(&panel["queries"]) {
                found.push((format!("{}: {}", text(&dashboard["title"]), text(&panel["title"])), text(&query["expr"])));
            }
        }
    }
    Ok(found)
}

/// A query with values in the place of the dashboards' variables: rates over half a minute, sums over `range`, every tenant.
pub fn plain(expr: &str, range: &str) -> String {
    let values = [("$__rate_interval", "30s"), ("$__range", range), ("$tenant", ".*"), ("$device_tenant", ".*")];
    values.iter().fold(expr.to_owned(), |expr, (name, value)| expr.replace(name, value))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn page(dashboard: &Value) -> Value {
    let (mut panels, mut y) = (Vec::new(), 0);
    for row in list(&dashboard["rows"]) {
        let place = json!({ "h": 1, "w": COLUMNS, "x": 0, "y": y });
        panels
            .push(json!({ "type": "row", "title": row["title"], "gridPos": place, "collapsed": false, "panels": [] }));
        y += 1;
        let mut x = 0;
        for one in list(&row["panels"]) {
            let width = one["width"].as_u64().unwrap_or(WIDTH);
            if x + width > COLUMNS {
                (x, y) = (0, y + HEIGHT);
            }
            panels.push(panel(one, &json!({ "h": HEIGHT, "w": width, "x": x, "y": y })));
            x += width;
        }
        y += HEIGHT;
    }
    for (id, panel) in panels.iter_mut().enumerate() {
        panel["id"] = json!(id + 1);
    }
    let datasource =
        json!({ "name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus" });
    let variables = list(&dashboard["variables"]).iter().map(variable);
    json!({
        "uid": dashboard["uid"],
        "title": dashboard["title"],
        "description": dashboard["description"],
        "tags": ["flexnpu"],
        "schemaVersion": SCHEMA,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": { "from": "now-15m", "to": "now" },
        "templating": { "list": std::iter::once(datasource).chain(variables).collect::<Vec<_>>() },
        "panels": panels,
    })
}

fn variable(variable: &Value) -> Value {
    json!({
        "name": variable["name"],
        "type": "query",
        "datasource": { "type": "prometheus", "uid": "${datasource}" },
        "query": { "query": variable["query"], "refId": "variable" },
        "includeAll": true,
        "multi": true,
        "allValue": ".*",
        "refresh": 2,
        "sort": 1,
    })
}

fn panel(panel: &Value, place: &Value) -> Value {
    let stat = panel["kind"].as_str() == Some("stat");
    let stack = if panel["stack"].as_bool() == Some(true) { "normal" } else { "none" };
    let fill = if stack == "normal" { 40 } else { 10 };
    let datasource = json!({ "type": "prometheus", "uid": "${datasource}" });
    let targets: Vec<Value> = list(&panel["queries"])
        .iter()
        .zip('A'..='Z')
        .map(|(query, id)| {
            let (expr, legend) = (&query["expr"], &query["legend"]);
            json!({ "refId": id, "expr": expr, "legendFormat": legend, "instant": stat, "range": !stat, "datasource": datasource })
        })
        .collect();
    let custom = json!({ "fillOpacity": fill, "lineWidth": 1, "showPoints": "never", "stacking": { "mode": stack } });
    let options = if stat {
        json!({ "textMode": "value_and_name", "colorMode": "none", "reduceOptions": { "calcs": ["lastNotNull"] } })
    } else {
        json!({ "legend": { "displayMode": "list", "placement": "bottom" }, "tooltip": { "mode": "multi", "sort": "desc" } })
    };
    json!({
        "type": if stat { "stat" } else { "timeseries" },
        "title": panel["title"],
        "description": panel["description"],
        "datasource": datasource,
        "gridPos": place,
        "fieldConfig": { "defaults": { "unit": panel["unit"], "min": 0, "custom": custom }, "overrides": [] },
        "options": options,
        "targets": targets,
    })
}
