//! What the token of an outside issuer says, and who comes of it.
//!
//! The order is upstream's: times and audience, user name, groups, uid, extra, required claims, the rules about claims
//! and the rules about the user that came of it. Everything here is decided from the token alone; whose signature it
//! bears is [`super::keys`]' business.

use sampan_auth::{UserInfo, user};
use sampan_cel::{Activation, Budget, Program, RUNTIME_BUDGET, Value as CelValue};
use serde_json::{Value, json};

use super::keys::Origin;

/// How far an issuer's clock may be ahead of ours where a token is not good yet, as upstream has it.
const AHEAD: i64 = 300;

/// One issuer, compiled.
pub struct Issuer {
    pub origin: Origin,
    pub audiences: Vec<String>,
    pub username: Mapping,
    pub groups: Option<Mapping>,
    pub uid: Option<Mapping>,
    /// Key, expression, and its text.
    pub extra: Vec<(String, Program, String)>,
    pub rules: Vec<Claim>,
    pub user_rules: Vec<Rule>,
}

/// Where a part of the user comes from.
pub enum Mapping {
    Claim { claim: String, prefix: String },
    Expression(Program),
}

/// What a token must say.
pub enum Claim {
    Required(String, String),
    Rule(Rule),
}

/// What must be true.
pub struct Rule {
    pub program: Program,
    pub expression: String,
    pub message: String,
}

impl Issuer {
    /// The user of a token, and when it ends (seconds since 1970).
    pub fn user(&self, claims: &Value, now: i64) -> Result<(UserInfo, i64), String> {
        if claims.get("iss").and_then(Value::as_str) != Some(self.origin.issuer.as_str()) {
            return Err("verify token: oidc: id token issued by a different provider".into());
        }
        let audiences = strings(claims.get("aud").unwrap_or(&Value::Null)).unwrap_or_default();
        if !self.audiences.iter().any(|own| audiences.contains(own)) {
            return Err(format!(
                "verify token: oidc: expected audience in {:?} got {audiences:?}",
                self.audiences
            ));
        }
        let expires = claims.get("exp").and_then(seconds).unwrap_or(0);
        if now >= expires {
            return Err("verify token: oidc: token is expired".into());
        }
        if let Some(begins) = claims.get("nbf").filter(|value| !value.is_null()) {
            let begins = seconds(begins).ok_or("parse claims: nbf is not a time")?;
            if now + AHEAD < begins {
                return Err("verify token: oidc: current time before the nbf (not before) time".into());
            }
        }
        let evaluation = Evaluation::new("claims", claims);
        let mut found = UserInfo {
            name: self.name(claims, &evaluation)?,
            groups: self.groups(claims, &evaluation)?,
            uid: self.uid(claims, &evaluation)?,
            ..UserInfo::default()
        };
        if let Some(id) = claims.get("jti").and_then(Value::as_str).filter(|id| !id.is_empty()) {
            found
                .extra
                .insert(user::CREDENTIAL_ID.into(), vec![format!("JTI={id}")]);
        }
        for (key, program, text) in &self.extra {
            let values = evaluation
                .strings(program)
                .map_err(|why| format!("error evaluating extra claim expression: {text}: {why}"))?;
            if !values.is_empty() {
                found.extra.insert(key.clone(), values);
            }
        }
        for rule in &self.rules {
            match rule {
                Claim::Required(claim, wanted) => {
                    let value = claims
                        .get(claim)
                        .ok_or_else(|| format!("required claim {claim} not present in ID token"))?;
                    let value = value
                        .as_str()
                        .ok_or_else(|| format!("parse claim {claim}: it is not a string"))?;
                    if value != wanted {
                        return Err(format!(
                            "required claim {claim} value does not match. Got = {value}, want = {wanted}"
                        ));
                    }
                }
                Claim::Rule(rule) => evaluation
                    .holds(rule)
                    .map_err(|why| format!("error evaluating claim validation expression: {why}"))?,
            }
        }
        if !self.user_rules.is_empty() {
            let shown = json!({
                "username": found.name, "uid": found.uid, "groups": found.groups, "extra": found.extra,
            });
            let evaluation = Evaluation::new("user", &shown);
            for rule in &self.user_rules {
                evaluation
                    .holds(rule)
                    .map_err(|why| format!("error evaluating user info validation rule: {why}"))?;
            }
        }
        found.imply_groups();
        Ok((found, expires))
    }

    fn name(&self, claims: &Value, evaluation: &Evaluation<'_>) -> Result<String, String> {
        match &self.username {
            Mapping::Expression(program) => {
                let during = |why: String| format!("error evaluating username claim expression: {why}");
                let name = evaluation.value(program).map_err(during)?;
                let name = name
                    .as_str()
                    .ok_or_else(|| during("username claim expression must return a string".into()))?;
                if name.is_empty() {
                    return Err("empty username via CEL expression is not allowed".into());
                }
                Ok(name.to_owned())
            }
            Mapping::Claim { claim, prefix } => {
                let name = text(claims, claim).map_err(|why| format!("parse username claims {claim:?}: {why}"))?;
                if claim == "email"
                    && let Some(verified) = claims.get("email_verified")
                {
                    match verified.as_bool() {
                        Some(true) => {}
                        Some(false) => return Err("email not verified".into()),
                        None => return Err("parse 'email_verified' claim: it is not a boolean".into()),
                    }
                }
                // Upstream lets a user without a name and prefix through; nobody can mean that.
                let name = format!("{prefix}{name}");
                match name.is_empty() {
                    true => Err(format!("the username claim {claim:?} is empty")),
                    false => Ok(name),
                }
            }
        }
    }

    fn groups(&self, claims: &Value, evaluation: &Evaluation<'_>) -> Result<Vec<String>, String> {
        match &self.groups {
            None => Ok(Vec::new()),
            Some(Mapping::Expression(program)) => evaluation
                .strings(program)
                .map_err(|why| format!("error evaluating group claim expression: {why}")),
            Some(Mapping::Claim { claim, prefix }) => {
                let Some(value) = claims.get(claim) else {
                    return Ok(Vec::new());
                };
                let groups = strings(value)
                    .ok_or_else(|| format!("parse groups claim {claim:?}: it is no string and no list of strings"))?;
                Ok(groups.into_iter().map(|group| format!("{prefix}{group}")).collect())
            }
        }
    }

    fn uid(&self, claims: &Value, evaluation: &Evaluation<'_>) -> Result<String, String> {
        match &self.uid {
            None => Ok(String::new()),
            Some(Mapping::Expression(program)) => {
                let during = |why: String| format!("error evaluating uid claim expression: {why}");
                let uid = evaluation.value(program).map_err(during)?;
                let uid = uid.as_str().map(str::to_owned);
                uid.ok_or_else(|| during("uid claim expression must return a string".into()))
            }
            Some(Mapping::Claim { claim, .. }) => {
                text(claims, claim).map_err(|why| format!("parse uid claim {claim:?}: {why}"))
            }
        }
    }
}

/// Expressions over one variable. They share a budget, so that many of them cost no more than one may.
struct Evaluation<'a> {
    activation: Activation<'a>,
    budget: Budget,
}

impl<'a> Evaluation<'a> {
    fn new(name: &'a str, value: &'a Value) -> Self {
        Evaluation {
            activation: Activation::new().with(name, CelValue::json(value)),
            budget: Budget::new(RUNTIME_BUDGET),
        }
    }

    /// As JSON; null also for what JSON cannot say.
    fn value(&self, program: &Program) -> Result<Value, String> {
        let value = program.eval(&self.activation, &self.budget);
        Ok(value
            .map_err(|error| error.to_string())?
            .to_json()
            .unwrap_or(Value::Null))
    }

    /// A string or a list of them; what is empty is left out.
    fn strings(&self, program: &Program) -> Result<Vec<String>, String> {
        let value = self.value(program)?;
        if value.is_null() {
            return Ok(Vec::new());
        }
        let all = strings(&value).ok_or("expression must return a string or a list of strings")?;
        Ok(all.into_iter().filter(|one| !one.is_empty()).collect())
    }

    fn holds(&self, rule: &Rule) -> Result<(), String> {
        match self.value(&rule.program)?.as_bool() {
            Some(true) => Ok(()),
            Some(false) => Err(format!(
                "validation expression '{}' failed: {}",
                rule.expression, rule.message
            )),
            None => Err("validation expression must return a boolean".into()),
        }
    }
}

fn text(claims: &Value, claim: &str) -> Result<String, String> {
    let value = claims.get(claim).ok_or("claim not present")?;
    value
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| "it is not a string".into())
}

/// A string or a list of them.
fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) => many.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// A time; some issuers write fractions.
fn seconds(value: &Value) -> Option<i64> {
    #[allow(clippy::cast_possible_truncation)] // `as` saturates
    value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64))
}
