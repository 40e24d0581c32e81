//! `AuthenticationConfiguration`, checked as upstream checks it, and the older `--oidc-*` options, which say the same
//! of one issuer.
//!
//! Refused besides what upstream refuses: an egress selector, since there is none here.

use std::collections::BTreeSet;
use std::path::PathBuf;

use sampan_api::field::{Error, Errors, Path};
use sampan_auth::Anonymous;
use sampan_cel::{CompileError, Decl, Env, Program, Type};
use sampan_pki::jws::Algorithm;
use sampan_pki::tls::ClientVerifier;
use serde::Deserialize;

use super::jwt::{Claim, Issuer, Mapping, Rule};
use super::keys::Origin;
use crate::admission::configuration::{told, tree, typed};

/// As many issuers as anybody has.
const MOST: usize = 64;

/// What a file says.
pub struct Configured {
    pub issuers: Vec<Issuer>,
    /// `None`: it says nothing about requests without credentials.
    pub anonymous: Option<Anonymous>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Whole {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    jwt: Option<Vec<JwtAuthenticator>>,
    #[serde(default)]
    anonymous: Option<AnonymousConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnonymousConfig {
    enabled: bool,
    #[serde(default)]
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    path: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct JwtAuthenticator {
    issuer: IssuerConfig,
    claim_validation_rules: Option<Vec<ClaimRule>>,
    claim_mappings: ClaimMappings,
    user_validation_rules: Option<Vec<UserRule>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct IssuerConfig {
    url: String,
    #[serde(rename = "discoveryURL")]
    discovery_url: Option<String>,
    certificate_authority: String,
    audiences: Vec<String>,
    audience_match_policy: String,
    egress_selector_type: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct ClaimRule {
    claim: String,
    required_value: String,
    expression: String,
    message: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ClaimMappings {
    username: Prefixed,
    groups: Prefixed,
    uid: Unprefixed,
    extra: Vec<Extra>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Prefixed {
    claim: String,
    prefix: Option<String>,
    expression: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Unprefixed {
    claim: String,
    expression: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Extra {
    key: String,
    value_expression: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct UserRule {
    expression: String,
    message: String,
}

/// Reads a file. `reserved` are this cluster's own issuers, which nobody else may be.
pub fn parse(content: &[u8], reserved: &[String]) -> Result<Configured, String> {
    let whole: Whole = typed(
        tree(content)?,
        "AuthenticationConfiguration",
        &[
            "apiserver.config.k8s.io/v1",
            "apiserver.config.k8s.io/v1beta1",
            "apiserver.config.k8s.io/v1alpha1",
        ],
    )?;
    let mut errors = Errors::new();
    let root = Path::new("jwt");
    let listed = whole.jwt.unwrap_or_default();
    if listed.len() > MOST {
        errors.push(Error::too_many(&root, listed.len(), MOST));
    }
    let (mut urls, mut discoveries) = (BTreeSet::new(), BTreeSet::new());
    let mut issuers = Vec::new();
    for (index, config) in listed.into_iter().take(MOST).enumerate() {
        let at = root.index(index);
        if !urls.insert(config.issuer.url.clone()) {
            errors.push(Error::duplicate(
                &at.child("issuer").child("url"),
                config.issuer.url.as_str(),
            ));
        }
        if let Some(url) = config.issuer.discovery_url.clone().filter(|url| !url.is_empty())
            && !discoveries.insert(url.clone())
        {
            errors.push(Error::duplicate(&at.child("issuer").child("discoveryURL"), url));
        }
        let mut checker = Checker { errors: &mut errors };
        issuers.extend(checker.issuer(config, reserved, &at));
    }
    let anonymous = whole.anonymous.map(|config| {
        let paths: Option<Vec<String>> = config
            .conditions
            .filter(|conditions| !conditions.is_empty())
            .map(|conditions| conditions.into_iter().map(|condition| condition.path).collect());
        match (config.enabled, paths) {
            (false, None) => Anonymous::Never,
            (true, None) => Anonymous::Everywhere,
            (true, Some(paths)) => Anonymous::Exactly(paths),
            (false, Some(paths)) => {
                errors.push(Error::invalid(
                    &Path::new("anonymous").child("conditions"),
                    paths,
                    "enabled should be set to true when conditions are defined",
                ));
                Anonymous::Never
            }
        }
    });
    told(errors)?;
    Ok(Configured { issuers, anonymous })
}

/// Checks one issuer, and makes of it what is used.
struct Checker<'e> {
    errors: &'e mut Errors,
}

impl Checker<'_> {
    fn invalid(&mut self, at: &Path, value: &str, why: impl Into<String>) {
        self.errors.push(Error::invalid(at, value, why));
    }
    fn required(&mut self, at: &Path, why: &str) {
        self.errors.push(Error::required(at, why));
    }

    fn issuer(&mut self, config: JwtAuthenticator, reserved: &[String], at: &Path) -> Option<Issuer> {
        let before = self.errors.len();
        self.origin(&config.issuer, reserved, &at.child("issuer"));
        let mut verified = false;
        let rules = self.claim_rules(
            config.claim_validation_rules.unwrap_or_default(),
            &at.child("claimValidationRules"),
            &mut verified,
        );
        let at_mappings = at.child("claimMappings");
        let at_name = at_mappings.child("username");
        let mappings = config.claim_mappings;
        let name_expression = mappings.username.expression.clone();
        let username = self.prefixed(mappings.username, &at_name, true);
        let groups = self.prefixed(mappings.groups, &at_mappings.child("groups"), false);
        let uid = self.unprefixed(mappings.uid, &at_mappings.child("uid"));
        let extra = self.extra(mappings.extra, &at_mappings.child("extra"), &mut verified);
        if let Some(Mapping::Expression(program)) = &username {
            verified |= program.selects("claims", "email_verified");
            if program.selects("claims", "email") && !verified {
                self.invalid(
                    &at_name.child("expression"),
                    &name_expression,
                    "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
                );
            }
        }
        let user_rules = self.user_rules(
            config.user_validation_rules.unwrap_or_default(),
            &at.child("userValidationRules"),
        );
        if self.errors.len() > before {
            return None;
        }
        Some(Issuer {
            origin: Origin {
                issuer: config.issuer.url,
                discovery: config.issuer.discovery_url.filter(|url| !url.is_empty()),
                authority: config.issuer.certificate_authority.into_bytes(),
            },
            audiences: config.issuer.audiences,
            username: username?,
            groups,
            uid,
            extra,
            rules,
            user_rules,
        })
    }

    fn origin(&mut self, issuer: &IssuerConfig, reserved: &[String], at: &Path) {
        let at_url = at.child("url");
        if issuer.url.is_empty() {
            self.required(&at_url, "");
        } else {
            if reserved.contains(&issuer.url) {
                let mut reserved = reserved.to_vec();
                reserved.sort();
                let list = format!("[{}]", reserved.join(" "));
                self.invalid(
                    &at_url,
                    &issuer.url,
                    format!("URL must not overlap with disallowed issuers: {list}"),
                );
            }
            self.url(&issuer.url, &at_url);
        }
        if let Some(url) = issuer.discovery_url.as_deref().filter(|url| !url.is_empty()) {
            let at = at.child("discoveryURL");
            if !issuer.url.is_empty() && issuer.url.trim_end_matches('/') == url.trim_end_matches('/') {
                self.invalid(&at, url, "discoveryURL must be different from URL");
            }
            self.url(url, &at);
        }
        self.audiences(issuer, at);
        if !issuer.certificate_authority.is_empty() {
            let verifier = ClientVerifier::of_bundle(issuer.certificate_authority.as_bytes());
            if let Err(error) = verifier {
                self.invalid(&at.child("certificateAuthority"), "<omitted>", error.to_string());
            }
        }
        if !issuer.egress_selector_type.is_empty() {
            self.invalid(
                &at.child("egressSelectorType"),
                &issuer.egress_selector_type,
                "egress selectors are not supported here",
            );
        }
    }

    fn url(&mut self, url: &str, at: &Path) {
        let Ok(parsed) = url.parse::<http::Uri>() else {
            return self.invalid(at, url, format!("parse {url:?}: invalid URL"));
        };
        if parsed.scheme_str() != Some("https") {
            self.invalid(at, url, "URL scheme must be https");
        }
        if parsed
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            self.invalid(at, url, "URL must not contain a username or password");
        }
        if parsed.query().is_some_and(|query| !query.is_empty()) {
            self.invalid(at, url, "URL must not contain a query");
        }
        if url.contains('#') {
            self.invalid(at, url, "URL must not contain a fragment");
        }
    }

    fn audiences(&mut self, issuer: &IssuerConfig, at: &Path) {
        let at_policy = at.child("audienceMatchPolicy");
        let at = at.child("audiences");
        if issuer.audiences.is_empty() {
            return self.required(&at, &format!("at least one {at} is required"));
        }
        let mut seen = BTreeSet::new();
        for (index, audience) in issuer.audiences.iter().enumerate() {
            if audience.is_empty() {
                self.required(&at.index(index), "");
            }
            if !seen.insert(audience) {
                self.errors.push(Error::duplicate(&at.index(index), audience.as_str()));
            }
        }
        let policy = issuer.audience_match_policy.as_str();
        if issuer.audiences.len() > 1 && policy != "MatchAny" {
            self.invalid(
                &at_policy,
                policy,
                "audienceMatchPolicy must be MatchAny for multiple audiences",
            );
        }
        if issuer.audiences.len() == 1 && !["", "MatchAny"].contains(&policy) {
            self.invalid(
                &at_policy,
                policy,
                "audienceMatchPolicy must be empty or MatchAny for single audience",
            );
        }
    }

    /// A program, if the expression is one and gives what it must.
    fn compile(&mut self, env: &Env, expression: &str, wanted: Option<Type>, at: &Path) -> Option<Program> {
        let compiled = env.compile(expression).map_err(|error: CompileError| {
            let detail = format!("compilation failed: {error}");
            self.invalid(at, expression, detail);
        });
        let program = compiled.ok()?;
        if let Some(wanted) = wanted
            && program.output().to_string() != wanted.to_string()
        {
            self.invalid(at, expression, format!("must evaluate to {wanted}"));
            return None;
        }
        Some(program)
    }

    fn claim_rules(&mut self, rules: Vec<ClaimRule>, at: &Path, verified: &mut bool) -> Vec<Claim> {
        let (mut claims, mut expressions) = (BTreeSet::new(), BTreeSet::new());
        let mut made = Vec::new();
        for (index, rule) in rules.into_iter().enumerate() {
            let at = at.index(index);
            match (rule.claim.is_empty(), rule.expression.is_empty()) {
                (false, false) => self.invalid(&at, &rule.claim, "claim and expression can't both be set"),
                (true, true) => self.required(&at, "claim or expression is required"),
                (false, true) => {
                    if !rule.message.is_empty() {
                        self.invalid(
                            &at.child("message"),
                            &rule.message,
                            "may not be specified when claim is set",
                        );
                    }
                    if !claims.insert(rule.claim.clone()) {
                        self.errors
                            .push(Error::duplicate(&at.child("claim"), rule.claim.as_str()));
                    }
                    made.push(Claim::Required(rule.claim, rule.required_value));
                }
                (true, false) => {
                    if !rule.required_value.is_empty() {
                        self.invalid(
                            &at.child("requiredValue"),
                            &rule.required_value,
                            "may not be specified when expression is set",
                        );
                    }
                    let at = at.child("expression");
                    if !expressions.insert(rule.expression.clone()) {
                        self.errors.push(Error::duplicate(&at, rule.expression.as_str()));
                        continue;
                    }
                    if let Some(program) = self.compile(&claims_env(), &rule.expression, Some(Type::Bool), &at) {
                        *verified |= program.selects("claims", "email_verified");
                        made.push(Claim::Rule(Rule {
                            program,
                            expression: rule.expression,
                            message: rule.message,
                        }));
                    }
                }
            }
        }
        made
    }

    fn prefixed(&mut self, mapping: Prefixed, at: &Path, required: bool) -> Option<Mapping> {
        match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
            (false, false) => {
                self.invalid(at, "", "claim and expression can't both be set");
                None
            }
            (true, true) => {
                if required {
                    self.required(at, "claim or expression is required");
                }
                None
            }
            (true, false) => {
                if let Some(prefix) = &mapping.prefix {
                    self.invalid(
                        &at.child("prefix"),
                        prefix,
                        "may not be specified when expression is set",
                    );
                }
                let at = at.child("expression");
                self.compile(&claims_env(), &mapping.expression, None, &at)
                    .map(Mapping::Expression)
            }
            (false, true) => match mapping.prefix {
                None => {
                    self.required(
                        &at.child("prefix"),
                        "prefix is required when claim is set. It can be set to an empty string to disable prefixing",
                    );
                    None
                }
                Some(prefix) => Some(Mapping::Claim {
                    claim: mapping.claim,
                    prefix,
                }),
            },
        }
    }

    fn unprefixed(&mut self, mapping: Unprefixed, at: &Path) -> Option<Mapping> {
        match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
            (false, false) => {
                self.invalid(at, "", "claim and expression can't both be set");
                None
            }
            (true, true) => None,
            (true, false) => {
                let at = at.child("expression");
                self.compile(&claims_env(), &mapping.expression, None, &at)
                    .map(Mapping::Expression)
            }
            (false, true) => Some(Mapping::Claim {
                claim: mapping.claim,
                prefix: String::new(),
            }),
        }
    }

    fn extra(&mut self, mappings: Vec<Extra>, at: &Path, verified: &mut bool) -> Vec<(String, Program, String)> {
        let mut seen = BTreeSet::new();
        let mut made = Vec::new();
        for (index, mapping) in mappings.into_iter().enumerate() {
            let at = at.index(index);
            let at_key = at.child("key");
            let key = mapping.key;
            self.domain_path(&key, &at_key);
            if key != key.to_lowercase() {
                self.invalid(&at_key, &key, "must be lowercase");
            }
            let domain = key.split_once('/').map_or("", |(domain, _)| domain);
            let of = |root: &str| domain == root || domain.strip_suffix(root).is_some_and(|rest| rest.ends_with('.'));
            if of("kubernetes.io") || of("k8s.io") {
                self.invalid(
                    &at_key,
                    &key,
                    "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use",
                );
            }
            if !seen.insert(key.clone()) {
                self.errors.push(Error::duplicate(&at_key, key));
                continue;
            }
            let at = at.child("valueExpression");
            if mapping.value_expression.is_empty() {
                self.required(&at, "");
                continue;
            }
            if let Some(program) = self.compile(&claims_env(), &mapping.value_expression, None, &at) {
                *verified |= program.selects("claims", "email_verified");
                made.push((key, program, mapping.value_expression));
            }
        }
        made
    }

    /// `example.org/foo`
    fn domain_path(&mut self, key: &str, at: &Path) {
        if key.is_empty() {
            return self.required(at, "");
        }
        match key.split_once('/') {
            Some((domain, path)) if !domain.is_empty() && !path.is_empty() => {
                for why in sampan_api::names::dns1123_subdomain(domain) {
                    self.invalid(at, domain, why);
                }
                let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~%!$&'()*+,;=:@".contains(c);
                if !path.chars().all(plain) {
                    self.invalid(at, path, "Invalid path");
                }
            }
            _ => self.invalid(at, key, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
        }
    }

    fn user_rules(&mut self, rules: Vec<UserRule>, at: &Path) -> Vec<Rule> {
        let mut seen = BTreeSet::new();
        let mut made = Vec::new();
        for (index, rule) in rules.into_iter().enumerate() {
            let at = at.index(index).child("expression");
            if rule.expression.is_empty() {
                self.required(&at, "");
                continue;
            }
            if !seen.insert(rule.expression.clone()) {
                self.errors.push(Error::duplicate(&at, rule.expression.as_str()));
                continue;
            }
            if let Some(program) = self.compile(&user_env(), &rule.expression, Some(Type::Bool), &at) {
                made.push(Rule {
                    program,
                    expression: rule.expression,
                    message: rule.message,
                });
            }
        }
        made
    }
}

/// `claims`: what the token says, of any form.
fn claims_env() -> Env {
    Env::new().with("claims", Decl::map(Decl::dynamic()))
}

/// `user`: who comes of it.
fn user_env() -> Env {
    let text = Decl::string;
    let user = Decl::object(
        "kubernetes.UserInfo",
        [
            ("username", text()),
            ("uid", text()),
            ("groups", Decl::list(text())),
            ("extra", Decl::map(Decl::list(text()))),
        ],
    );
    Env::new().with("user", user)
}

/// One issuer by the older options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oidc {
    pub issuer_url: String,
    pub client_id: String,
    pub ca_file: Option<PathBuf>,
    pub username_claim: String,
    /// `None`: the issuer and `#`, but for the claim `email`. `-`: none.
    pub username_prefix: Option<String>,
    pub groups_claim: Option<String>,
    pub groups_prefix: String,
    pub required_claims: Vec<(String, String)>,
    pub algorithms: Vec<Algorithm>,
}

impl Oidc {
    pub(super) fn issuer(&self, reserved: &[String]) -> Result<Issuer, String> {
        let prefix = match self.username_prefix.as_deref() {
            None | Some("") if self.username_claim == "email" => String::new(),
            None | Some("") => format!("{}#", self.issuer_url),
            Some("-") => String::new(),
            Some(prefix) => prefix.to_owned(),
        };
        let authority = match &self.ca_file {
            None => String::new(),
            Some(path) => {
                std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?
            }
        };
        let config = JwtAuthenticator {
            issuer: IssuerConfig {
                url: self.issuer_url.clone(),
                audiences: vec![self.client_id.clone()],
                certificate_authority: authority,
                ..IssuerConfig::default()
            },
            claim_validation_rules: Some(
                self.required_claims
                    .iter()
                    .map(|(claim, value)| ClaimRule {
                        claim: claim.clone(),
                        required_value: value.clone(),
                        ..ClaimRule::default()
                    })
                    .collect(),
            ),
            claim_mappings: ClaimMappings {
                username: Prefixed {
                    claim: self.username_claim.clone(),
                    prefix: Some(prefix),
                    expression: String::new(),
                },
                groups: Prefixed {
                    claim: self.groups_claim.clone().unwrap_or_default(),
                    prefix: self.groups_claim.is_some().then(|| self.groups_prefix.clone()),
                    expression: String::new(),
                },
                ..ClaimMappings::default()
            },
            user_validation_rules: None,
        };
        let mut errors = Errors::new();
        let issuer = Checker { errors: &mut errors }.issuer(config, reserved, &Path::new("jwt").index(0));
        told(errors)?;
        issuer.ok_or_else(|| "it names no user".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n";
    const ISSUER: &str = "jwt:\n- issuer: {url: 'https://i.example', audiences: [a]}\n";

    fn parsed(rest: &str) -> Result<Configured, String> {
        parse(format!("{HEAD}{rest}").as_bytes(), &["https://own".to_owned()])
    }

    #[test]
    fn upstreams_files_are_read() {
        let file = "anonymous:\n  enabled: true\n  conditions: [{path: /livez}]\njwt:\n- issuer:\n    url: https://i.example\n    discoveryURL: https://d.example/conf\n    audiences: [a, b]\n    audienceMatchPolicy: MatchAny\n  claimValidationRules:\n  - {claim: hd, requiredValue: x}\n  - {expression: 'claims.exp - claims.nbf <= 86400', message: too long}\n  claimMappings:\n    username: {expression: 'claims.username + \":external\"'}\n    groups: {claim: roles, prefix: 'i:'}\n    uid: {claim: sub}\n    extra:\n    - {key: example.com/tenant, valueExpression: claims.tenant}\n  userValidationRules:\n  - {expression: \"!user.username.startsWith('system:')\", message: reserved}\n";
        let configured = parsed(file).unwrap();
        assert_eq!(configured.anonymous, Some(Anonymous::Exactly(vec!["/livez".into()])));
        let [issuer] = configured.issuers.as_slice() else {
            panic!("one issuer")
        };
        assert_eq!(issuer.origin.discovery.as_deref(), Some("https://d.example/conf"));
        assert_eq!(
            (issuer.rules.len(), issuer.user_rules.len(), issuer.extra.len()),
            (2, 1, 1)
        );
        assert!(parsed("").unwrap().issuers.is_empty());
    }

    #[test]
    fn wrong_files_are_refused_in_upstreams_words() {
        let with = |rest: &str| format!("{ISSUER}{rest}");
        let name = "  claimMappings:\n    username: {claim: sub, prefix: ''}\n";
        for (file, why) in [
            ("jwt: [{}]".to_owned(), "jwt[0].issuer.url: Required value"),
            (
                with(""),
                "jwt[0].claimMappings.username: Required value: claim or expression is required",
            ),
            (
                with("  claimMappings: {username: {claim: sub}}"),
                "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set",
            ),
            (
                with("  claimMappings: {username: {expression: claims.email}}"),
                "claims.email_verified must be used in",
            ),
            (
                with("  claimMappings: {username: {expression: 'claims.'}}"),
                "jwt[0].claimMappings.username.expression: Invalid value: \"claims.\": compilation failed",
            ),
            (
                "jwt:\n- issuer: {url: 'http://i.example', audiences: [a]}\n".to_owned() + name,
                "jwt[0].issuer.url: Invalid value: \"http://i.example\": URL scheme must be https",
            ),
            (
                "jwt:\n- issuer: {url: 'https://own', audiences: [a]}\n".to_owned() + name,
                "URL must not overlap with disallowed issuers: [https://own]",
            ),
            (
                "jwt:\n- issuer: {url: 'https://i.example', audiences: [a, b]}\n".to_owned() + name,
                "audienceMatchPolicy must be MatchAny for multiple audiences",
            ),
            (
                "jwt:\n- issuer: {url: 'https://i.example', audiences: [a], certificateAuthority: x}\n".to_owned()
                    + name,
                "jwt[0].issuer.certificateAuthority: Invalid value: \"<omitted>\"",
            ),
            (
                "jwt:\n- issuer: {url: 'https://u:p@i.example?q=1', audiences: [a]}\n".to_owned() + name,
                "URL must not contain a username or password",
            ),
            (
                with(name) + "  claimValidationRules: [{expression: claims.x}]\n",
                "jwt[0].claimValidationRules[0].expression: Invalid value: \"claims.x\": must evaluate to bool",
            ),
            (
                with(name) + "    extra: [{key: foo, valueExpression: '\"x\"'}]\n",
                "must be a domain-prefixed path",
            ),
            (
                with(name) + "    extra: [{key: a.k8s.io/foo, valueExpression: '\"x\"'}]\n",
                "are reserved for Kubernetes use",
            ),
            (
                "anonymous: {enabled: false, conditions: [{path: /x}]}".to_owned(),
                "enabled should be set to true when conditions are defined",
            ),
            ("jwts: []".to_owned(), "unknown field `jwts`"),
        ] {
            let Err(found) = parsed(&file) else {
                panic!("{file} is accepted")
            };
            assert!(found.contains(why), "{file}\n{found}\n{why}");
        }
        assert!(parse(b"apiVersion: v1\nkind: Pod\n", &[]).is_err());
    }
}
