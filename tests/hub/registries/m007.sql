BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" ("id", "migration_set", "name", "applied_at") VALUES (1, 'lorary', 'm001_catalogue', '2026-11-28 19:13:02.472151+00:00');
INSERT INTO "_sqlite_migrations" ("id", "migration_set", "name", "applied_at") VALUES (2, 'lorary', 'm002_pretrained_bases', '2026-11-28 19:13:02.473067+00:00');
INSERT INTO "_sqlite_migrations" ("id", "migration_set", "name", "applied_at") VALUES (3, 'lorary', 'm003_finding', '2026-11-28 22:09:26.104211+00:00');
INSERT INTO "_sqlite_migrations" ("id", "migration_set", "name", "applied_at") VALUES (4, 'lorary', 'm004_alias_moves', '2026-11-28 22:09:26.246587+00:00');
INSERT INTO "_sqlite_migrations" ("id", "migration_set", "name", "applied_at") VALUES (5, 'lorary', 'm005_remotes', '2026-11-28 22:09:26.387631+00:00');
INSERT INTO "_sqlite_migrations" ("id", "migration_set", "name", "applied_at") VALUES (6, 'lorary', 'm006_rollbacks', '2026-11-28 22:09:26.525481+00:00');
INSERT INTO "_sqlite_migrations" ("id", "migration_set", "name", "applied_at") VALUES (7, 'lorary', 'm007_origins', '2026-11-28 22:22:33.868837+00:00');
CREATE TABLE adapters (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    domain TEXT NOT NULL,
    task TEXT NOT NULL,
    -- kept here, not derived from the versions, so that the number of a removed version isn't given out again
    next_number INTEGER NOT NULL DEFAULT 1
);
INSERT INTO "adapters" ("id", "name", "domain", "task", "next_number") VALUES (1, 'finance-tone', 'finance', 'text-classification', 3);
INSERT INTO "adapters" ("id", "name", "domain", "task", "next_number") VALUES (2, 'legal-ner', 'legal', 'token-classification', 2);
INSERT INTO "adapters" ("id", "name", "domain", "task", "next_number") VALUES (3, 'foreign', 'news', 'text-classification', 2);
INSERT INTO "adapters" ("id", "name", "domain", "task", "next_number") VALUES (4, 'gone', 'finance', 'text-classification', 2);
INSERT INTO "adapters" ("id", "name", "domain", "task", "next_number") VALUES (5, 'orphan', 'finance', 'text-classification', 2);
CREATE TABLE aliases (
    adapter_id INTEGER NOT NULL REFERENCES adapters (id),
    name TEXT NOT NULL,
    version_id INTEGER NOT NULL REFERENCES versions (id),
    PRIMARY KEY (adapter_id, name)
);
INSERT INTO "aliases" ("adapter_id", "name", "version_id") VALUES (1, 'candidate', 2);
INSERT INTO "aliases" ("adapter_id", "name", "version_id") VALUES (1, 'prod', 1);
INSERT INTO "aliases" ("adapter_id", "name", "version_id") VALUES (3, 'live', 4);
CREATE TABLE base_files (base TEXT NOT NULL, name TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (base, name));
INSERT INTO "base_files" ("base", "name", "sha256", "size") VALUES ('village', 'config.json', '665939e0da5aa211ec9832ffe5dcba176d1bbac8a95c899c270ec29082853c51', 23);
CREATE TABLE bases (
    fingerprint TEXT NOT NULL,
    id TEXT NOT NULL,
    "commit" TEXT, digest TEXT, architecture TEXT, parameters INTEGER, created_at TEXT, details TEXT,
    PRIMARY KEY (fingerprint, id)
);
INSERT INTO "bases" ("fingerprint", "id", "commit", "digest", "architecture", "parameters", "created_at", "details") VALUES ('c796a6a7612d9b288cb539a27174ffee89f6b2cfc11ed214ca15e176c7a32859', 'org/tiny', 'cccccccccccccccccccccccccccccccccccccccc', NULL, NULL, NULL, NULL, NULL);
INSERT INTO "bases" ("fingerprint", "id", "commit", "digest", "architecture", "parameters", "created_at", "details") VALUES ('ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff', 'village', NULL, '8dbccf7e204f315c764788646d08a607d5c54e39671ee2c4f53767a3feb323ff', 'bert', 1234, '2026-11-28T19:13:03+00:00', '{"metrics": {"test": {"perplexity": 9.5}}, "provenance": {"vocabulary": 512}}');
CREATE TABLE files (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (version_id, name)
);
INSERT INTO "files" ("version_id", "name", "sha256", "size") VALUES (1, 'adapter_config.json', 'a09477217ba39ca81aca6166b21dd535e27ab9ae177388d2d4798ed6b9edbfc0', 168);
INSERT INTO "files" ("version_id", "name", "sha256", "size") VALUES (1, 'adapter_model.safetensors', '978a259a0c805b92e33823b128914ccd112d8252897c40411f6b94b0282671fc', 285);
INSERT INTO "files" ("version_id", "name", "sha256", "size") VALUES (1, 'lorary.json', '9dc727b0baa309c4712b8fe63ed6450af59fb969dec1323c65be28db466565f6', 681);
INSERT INTO "files" ("version_id", "name", "sha256", "size") VALUES (2, 'adapter_config.json', 'a09477217ba39ca81aca6166b21dd535e27ab9ae177388d2d4798ed6b9edbfc0', 168);
INSERT INTO "files" ("version_id", "name", "sha256", "size") VALUES (2, 'adapter_model.safetensors', '4b3adf086b3a64ace288ee3203aee369cccd11169a4db53b51e7e5c3e1a58f16', 285);
INSERT INTO "files" ("version_id", "name", "sha256", "size") VALUES (2, 'lorary.json', '9dc727b0baa309c4712b8fe63ed6450af59fb969dec1323c65be28db466565f6', 681);
INSERT INTO "files" ("version_id", "name", "sha256", "size") VALUES (3, 'adapter_config.json', 'a09477217ba39ca81aca6166b21dd535e27ab9ae177388d2d4798ed6b9edbfc0', 168);
INSERT INTO "files" ("version_id", "name", "sha256", "size") VALUES (3, 'adapter_model.safetensors', '9a34e6e331e107c56cd311f4e8f0adf20d8fe266efb9d5bcb619e8d606ac3392', 285);
INSERT INTO "files" ("version_id", "name", "sha256", "size") VALUES (3, 'lorary.json', 'f10e5e84f0f7b47bcf82c22a0235d45686f7314d2173be770799a8cdfbed84fb', 680);
INSERT INTO "files" ("version_id", "name", "sha256", "size") VALUES (4, 'adapter_config.json', 'a09477217ba39ca81aca6166b21dd535e27ab9ae177388d2d4798ed6b9edbfc0', 168);
INSERT INTO "files" ("version_id", "name", "sha256", "size") VALUES (4, 'adapter_model.safetensors', 'e18ecabde420ae89723c25e1dc6ed3e375d5f799386781f38a91108e2a46e9a8', 285);
INSERT INTO "files" ("version_id", "name", "sha256", "size") VALUES (6, 'adapter_config.json', 'a09477217ba39ca81aca6166b21dd535e27ab9ae177388d2d4798ed6b9edbfc0', 168);
INSERT INTO "files" ("version_id", "name", "sha256", "size") VALUES (6, 'adapter_model.safetensors', 'b9a128abd42ffac692599aef2cab0021a5a8628b3d0b241a59753321914f5b08', 285);
INSERT INTO "files" ("version_id", "name", "sha256", "size") VALUES (6, 'lorary.json', '9dc727b0baa309c4712b8fe63ed6450af59fb969dec1323c65be28db466565f6', 681);
CREATE TABLE "parents" (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    -- the reference stays true when the parent is removed, since numbers aren't given out again
    parent TEXT NOT NULL,
    parent_id INTEGER REFERENCES versions (id) ON DELETE SET NULL,
    PRIMARY KEY (version_id, parent)
);
INSERT INTO "parents" ("version_id", "parent", "parent_id") VALUES (2, 'finance-tone@1', 1);
INSERT INTO "parents" ("version_id", "parent", "parent_id") VALUES (6, 'gone@1', NULL);
CREATE TABLE metrics (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    split TEXT NOT NULL,
    name TEXT NOT NULL,
    value REAL NOT NULL, domain TEXT, task TEXT,
    PRIMARY KEY (version_id, split, name)
);
INSERT INTO "metrics" ("version_id", "split", "name", "value", "domain", "task") VALUES (1, 'test', 'f1', 0.7, 'finance', 'text-classification');
INSERT INTO "metrics" ("version_id", "split", "name", "value", "domain", "task") VALUES (1, 'test', 'loss', 0.6, 'finance', 'text-classification');
INSERT INTO "metrics" ("version_id", "split", "name", "value", "domain", "task") VALUES (2, 'test', 'f1', 0.9, 'finance', 'text-classification');
INSERT INTO "metrics" ("version_id", "split", "name", "value", "domain", "task") VALUES (2, 'test', 'loss', 0.4, 'finance', 'text-classification');
INSERT INTO "metrics" ("version_id", "split", "name", "value", "domain", "task") VALUES (2, 'untrained', 'f1', 0.25, 'finance', 'text-classification');
INSERT INTO "metrics" ("version_id", "split", "name", "value", "domain", "task") VALUES (3, 'test', 'f1', 0.8, 'legal', 'token-classification');
INSERT INTO "metrics" ("version_id", "split", "name", "value", "domain", "task") VALUES (4, 'test', 'f1', 0.95, 'news', 'text-classification');
CREATE TABLE tags (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    tag TEXT NOT NULL,
    PRIMARY KEY (version_id, tag)
);
INSERT INTO "tags" ("version_id", "tag") VALUES (1, 'english');
INSERT INTO "tags" ("version_id", "tag") VALUES (1, 'news');
INSERT INTO "tags" ("version_id", "tag") VALUES (3, 'by-hand');
CREATE TABLE versions (
    id INTEGER PRIMARY KEY,
    adapter_id INTEGER NOT NULL REFERENCES adapters (id),
    number INTEGER NOT NULL,
    digest TEXT NOT NULL,
    base_id TEXT,
    base_fingerprint TEXT,
    method TEXT NOT NULL,
    quantization TEXT NOT NULL,
    rank INTEGER,
    parameters INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    strategy TEXT NOT NULL,
    manifest TEXT, labels TEXT,
    UNIQUE (adapter_id, number),
    UNIQUE (adapter_id, digest)
);
INSERT INTO "versions" ("id", "adapter_id", "number", "digest", "base_id", "base_fingerprint", "method", "quantization", "rank", "parameters", "size_bytes", "created_at", "strategy", "manifest", "labels") VALUES (1, 1, 1, 'c5d4a1b08c70b3657fc7bbc0c1f7c5fe648d639e56ec44c2835eaefb62f8af8b', 'org/tiny', 'c796a6a7612d9b288cb539a27174ffee89f6b2cfc11ed214ca15e176c7a32859', 'lora', 'none', 2, 16, 285, '2026-11-28T19:13:02+00:00', 'import', '{
  "base": {
    "chat_template_sha256": null,
    "commit": "cccccccccccccccccccccccccccccccccccccccc",
    "fingerprint": "c796a6a7612d9b288cb539a27174ffee89f6b2cfc11ed214ca15e176c7a32859",
    "id": "org/tiny",
    "tokenizer_sha256": null
  },
  "domain": "finance",
  "format": 1,
  "golden_rows": [],
  "labels": [
    "negative",
    "positive"
  ],
  "numerics": {
    "device": "cpu",
    "dtype": "float32",
    "quantization": "none"
  },
  "preprocessing": {
    "columns": {
      "label": "label",
      "text": "text"
    },
    "max_length": 64,
    "prefix": ""
  },
  "problem_type": null,
  "prompt": null,
  "provenance": {},
  "task": "text-classification"
}
', 'negative, positive');
INSERT INTO "versions" ("id", "adapter_id", "number", "digest", "base_id", "base_fingerprint", "method", "quantization", "rank", "parameters", "size_bytes", "created_at", "strategy", "manifest", "labels") VALUES (2, 1, 2, '4509ae19df5573c0ffdad5c3f396501f087771f17dc490aeaf2800c869d8b71c', 'org/tiny', 'c796a6a7612d9b288cb539a27174ffee89f6b2cfc11ed214ca15e176c7a32859', 'lora', 'none', 2, 16, 285, '2026-11-28T19:13:02+00:00', 'fine-tune', '{
  "base": {
    "chat_template_sha256": null,
    "commit": "cccccccccccccccccccccccccccccccccccccccc",
    "fingerprint": "c796a6a7612d9b288cb539a27174ffee89f6b2cfc11ed214ca15e176c7a32859",
    "id": "org/tiny",
    "tokenizer_sha256": null
  },
  "domain": "finance",
  "format": 1,
  "golden_rows": [],
  "labels": [
    "negative",
    "positive"
  ],
  "numerics": {
    "device": "cpu",
    "dtype": "float32",
    "quantization": "none"
  },
  "preprocessing": {
    "columns": {
      "label": "label",
      "text": "text"
    },
    "max_length": 64,
    "prefix": ""
  },
  "problem_type": null,
  "prompt": null,
  "provenance": {},
  "task": "text-classification"
}
', 'negative, positive');
INSERT INTO "versions" ("id", "adapter_id", "number", "digest", "base_id", "base_fingerprint", "method", "quantization", "rank", "parameters", "size_bytes", "created_at", "strategy", "manifest", "labels") VALUES (3, 2, 1, '09f2a90864965f10247041ba3194837bc29889cf01a6ee3f3fde5a4d0fff0a26', 'org/tiny', 'c796a6a7612d9b288cb539a27174ffee89f6b2cfc11ed214ca15e176c7a32859', 'lora', 'none', 2, 16, 285, '2026-11-28T19:13:02+00:00', 'import', '{
  "base": {
    "chat_template_sha256": null,
    "commit": "cccccccccccccccccccccccccccccccccccccccc",
    "fingerprint": "c796a6a7612d9b288cb539a27174ffee89f6b2cfc11ed214ca15e176c7a32859",
    "id": "org/tiny",
    "tokenizer_sha256": null
  },
  "domain": "legal",
  "format": 1,
  "golden_rows": [],
  "labels": [
    "Société",
    "Gericht"
  ],
  "numerics": {
    "device": "cpu",
    "dtype": "float32",
    "quantization": "none"
  },
  "preprocessing": {
    "columns": {
      "label": "label",
      "text": "text"
    },
    "max_length": 64,
    "prefix": ""
  },
  "problem_type": null,
  "prompt": null,
  "provenance": {},
  "task": "token-classification"
}
', 'Société, Gericht');
INSERT INTO "versions" ("id", "adapter_id", "number", "digest", "base_id", "base_fingerprint", "method", "quantization", "rank", "parameters", "size_bytes", "created_at", "strategy", "manifest", "labels") VALUES (4, 3, 1, 'e45bf56a554dff76463d3c27aa8c40de766091f0a8608fd2572b13e1e1484ea7', 'org/tiny', NULL, 'lora', 'none', 2, 16, 285, '2026-11-28T19:13:02+00:00', 'import', NULL, NULL);
INSERT INTO "versions" ("id", "adapter_id", "number", "digest", "base_id", "base_fingerprint", "method", "quantization", "rank", "parameters", "size_bytes", "created_at", "strategy", "manifest", "labels") VALUES (6, 5, 1, 'e13b45aa45224d71b6c436f3511a757ee7a5e6816cacc75ce57e40e9929a590d', 'org/tiny', 'c796a6a7612d9b288cb539a27174ffee89f6b2cfc11ed214ca15e176c7a32859', 'lora', 'none', 2, 16, 285, '2026-11-28T19:13:03+00:00', 'fine-tune', '{
  "base": {
    "chat_template_sha256": null,
    "commit": "cccccccccccccccccccccccccccccccccccccccc",
    "fingerprint": "c796a6a7612d9b288cb539a27174ffee89f6b2cfc11ed214ca15e176c7a32859",
    "id": "org/tiny",
    "tokenizer_sha256": null
  },
  "domain": "finance",
  "format": 1,
  "golden_rows": [],
  "labels": [
    "negative",
    "positive"
  ],
  "numerics": {
    "device": "cpu",
    "dtype": "float32",
    "quantization": "none"
  },
  "preprocessing": {
    "columns": {
      "label": "label",
      "text": "text"
    },
    "max_length": 64,
    "prefix": ""
  },
  "problem_type": null,
  "prompt": null,
  "provenance": {},
  "task": "text-classification"
}
', 'negative, positive');
CREATE VIRTUAL TABLE search USING fts5 (
    name, domain, task, base, method, strategy, tags, aliases, labels,
    tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3'
);
INSERT INTO "search" ("rowid", "name", "domain", "task", "base", "method", "strategy", "tags", "aliases", "labels") VALUES (1, 'finance-tone', 'finance', 'text-classification', 'org/tiny', 'lora', 'import', 'english news', 'prod', 'negative, positive');
INSERT INTO "search" ("rowid", "name", "domain", "task", "base", "method", "strategy", "tags", "aliases", "labels") VALUES (2, 'finance-tone', 'finance', 'text-classification', 'org/tiny', 'lora', 'fine-tune', NULL, 'candidate', 'negative, positive');
INSERT INTO "search" ("rowid", "name", "domain", "task", "base", "method", "strategy", "tags", "aliases", "labels") VALUES (3, 'legal-ner', 'legal', 'token-classification', 'org/tiny', 'lora', 'import', NULL, NULL, 'Société, Gericht');
INSERT INTO "search" ("rowid", "name", "domain", "task", "base", "method", "strategy", "tags", "aliases", "labels") VALUES (4, 'foreign', 'news', 'text-classification', 'org/tiny', 'lora', 'import', NULL, NULL, NULL);
INSERT INTO "search" ("rowid", "name", "domain", "task", "base", "method", "strategy", "tags", "aliases", "labels") VALUES (6, 'orphan', 'finance', 'text-classification', 'org/tiny', 'lora', 'fine-tune', NULL, NULL, 'negative, positive');
CREATE TABLE search_pending (version_id INTEGER NOT NULL);
INSERT INTO "search_pending" ("version_id") VALUES (3);
INSERT INTO "search_pending" ("version_id") VALUES (4);
CREATE TABLE alias_moves (
    id INTEGER PRIMARY KEY,
    adapter_id INTEGER NOT NULL REFERENCES adapters (id),
    alias TEXT NOT NULL,
    -- numbers, not row ids: what an alias once meant stays true when that version is removed
    from_number INTEGER,
    to_number INTEGER,
    at TEXT NOT NULL,
    who TEXT NOT NULL,
    why TEXT
, undoes INTEGER REFERENCES alias_moves (id), origin TEXT);
INSERT INTO "alias_moves" ("id", "adapter_id", "alias", "from_number", "to_number", "at", "who", "why", "undoes", "origin") VALUES (1, 1, 'prod', NULL, 1, '2026-11-28T19:20:00+00:00', 'ann', 'first good one', NULL, NULL);
INSERT INTO "alias_moves" ("id", "adapter_id", "alias", "from_number", "to_number", "at", "who", "why", "undoes", "origin") VALUES (2, 1, 'candidate', NULL, 2, '2026-11-28T19:21:00+00:00', 'ben', NULL, NULL, NULL);
INSERT INTO "alias_moves" ("id", "adapter_id", "alias", "from_number", "to_number", "at", "who", "why", "undoes", "origin") VALUES (3, 1, 'prod', 1, 2, '2026-11-28T19:23:00+00:00', 'ann', NULL, NULL, NULL);
INSERT INTO "alias_moves" ("id", "adapter_id", "alias", "from_number", "to_number", "at", "who", "why", "undoes", "origin") VALUES (4, 1, 'prod', 2, 1, '2026-11-28T19:24:00+00:00', 'ben', 'slower', 3, NULL);
INSERT INTO "alias_moves" ("id", "adapter_id", "alias", "from_number", "to_number", "at", "who", "why", "undoes", "origin") VALUES (5, 3, 'live', NULL, 1, '2026-11-28T19:25:00+00:00', 'eve', NULL, NULL, '~/team/registry.db: - to 4');
CREATE TABLE remotes (version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE, remote TEXT NOT NULL, "commit" TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (version_id, remote));
INSERT INTO "remotes" ("version_id", "remote", "commit", "at") VALUES (2, 'ann/finance-tone', '1234567890abcdef1234567890abcdef12345678', '2026-11-28T19:22:00+00:00');
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE INDEX adapters_domain_task ON adapters (domain, task);
CREATE INDEX adapters_task ON adapters (task);
CREATE INDEX versions_digest ON versions (digest);
CREATE INDEX versions_base_id ON versions (base_id);
CREATE INDEX files_sha256 ON files (sha256);
CREATE INDEX aliases_version ON aliases (version_id);
CREATE INDEX bases_id ON bases (id);
CREATE UNIQUE INDEX bases_pretrained ON bases (id) WHERE digest IS NOT NULL;
CREATE INDEX parents_parent ON parents (parent_id);
CREATE VIEW search_text AS
SELECT v.id AS version_id, a.name, a.domain, a.task, v.base_id AS base, v.method, v.strategy,
    (SELECT group_concat(t.tag, ' ') FROM tags t WHERE t.version_id = v.id) AS tags,
    (SELECT group_concat(l.name, ' ') FROM aliases l WHERE l.version_id = v.id) AS aliases,
    v.labels
FROM versions v JOIN adapters a ON a.id = v.adapter_id;
CREATE TRIGGER search_new_version AFTER INSERT ON versions BEGIN
    INSERT INTO search_pending VALUES (new.id);
END;
CREATE TRIGGER search_gone_version AFTER DELETE ON versions BEGIN
    INSERT INTO search_pending VALUES (old.id);
END;
CREATE TRIGGER search_changed_version AFTER UPDATE OF base_id, method, strategy, labels ON versions BEGIN
    INSERT INTO search_pending VALUES (new.id);
END;
CREATE TRIGGER search_changed_adapter AFTER UPDATE OF name, domain, task ON adapters BEGIN
    INSERT INTO search_pending SELECT id FROM versions WHERE adapter_id = new.id;
END;
CREATE TRIGGER search_new_tag AFTER INSERT ON tags BEGIN
    INSERT INTO search_pending VALUES (new.version_id);
END;
CREATE TRIGGER search_gone_tag AFTER DELETE ON tags BEGIN
    INSERT INTO search_pending VALUES (old.version_id);
END;
CREATE TRIGGER search_new_alias AFTER INSERT ON aliases BEGIN
    INSERT INTO search_pending VALUES (new.version_id);
END;
CREATE TRIGGER search_gone_alias AFTER DELETE ON aliases BEGIN
    INSERT INTO search_pending VALUES (old.version_id);
END;
CREATE TRIGGER search_moved_alias AFTER UPDATE ON aliases BEGIN
    INSERT INTO search_pending VALUES (old.version_id), (new.version_id);
END;
CREATE TRIGGER metrics_new AFTER INSERT ON metrics BEGIN
    UPDATE metrics SET (domain, task) = (
        SELECT a.domain, a.task FROM versions v JOIN adapters a ON a.id = v.adapter_id WHERE v.id = new.version_id
    ) WHERE rowid = new.rowid;
END;
CREATE TRIGGER metrics_changed_adapter AFTER UPDATE OF domain, task ON adapters BEGIN
    UPDATE metrics SET domain = new.domain, task = new.task
    WHERE version_id IN (SELECT id FROM versions WHERE adapter_id = new.id);
END;
CREATE INDEX metrics_value ON metrics (name, value, version_id, domain, task) WHERE split = 'test';
CREATE INDEX metrics_cell ON metrics (domain, task, name, value, version_id) WHERE split = 'test';
CREATE INDEX metrics_version ON metrics (version_id, name, value) WHERE split = 'test';
CREATE INDEX versions_base_fingerprint ON versions (base_fingerprint, base_id);
CREATE INDEX versions_method ON versions (method);
CREATE INDEX versions_strategy ON versions (strategy);
CREATE INDEX versions_created ON versions (created_at);
CREATE INDEX versions_rank ON versions (rank);
CREATE INDEX versions_parameters ON versions (parameters);
CREATE INDEX versions_size ON versions (size_bytes);
CREATE INDEX tags_tag ON tags (tag, version_id);
CREATE INDEX aliases_name ON aliases (name, version_id);
CREATE VIEW latest AS
SELECT a.name || '@' || v.number AS reference, a.name, v.number AS version, a.domain, a.task, v.base_id AS base,
    v.base_fingerprint, v.method, v.quantization, v.strategy, v.rank, v.parameters, v.size_bytes, v.created_at,
    (SELECT group_concat(name, ', ') FROM (SELECT name FROM aliases WHERE version_id = v.id ORDER BY name)) AS aliases,
    (SELECT group_concat(tag, ', ') FROM (SELECT tag FROM tags WHERE version_id = v.id ORDER BY tag)) AS tags,
    (SELECT group_concat(printf('%s %.4g', name, value), ', ') FROM
        (SELECT name, value FROM metrics WHERE version_id = v.id AND split = 'test' ORDER BY name)) AS metrics
FROM adapters a
JOIN versions v ON v.adapter_id = a.id AND v.number = (SELECT max(number) FROM versions WHERE adapter_id = a.id);
CREATE VIEW leaderboard AS
SELECT m.domain, m.task, m.name AS metric,
    rank() OVER (
        PARTITION BY m.domain, m.task, m.name
        ORDER BY CASE
            WHEN m.name NOT LIKE 'f1%' AND (
                lower(m.name) IN ('loss', 'perplexity', 'wer', 'cer', 'mse', 'mae', 'rmse', 'error')
                OR m.name LIKE '%#_loss' ESCAPE '#' OR m.name LIKE '%#_perplexity' ESCAPE '#'
                OR m.name LIKE '%#_wer' ESCAPE '#' OR m.name LIKE '%#_cer' ESCAPE '#'
                OR m.name LIKE '%#_mse' ESCAPE '#' OR m.name LIKE '%#_mae' ESCAPE '#'
                OR m.name LIKE '%#_rmse' ESCAPE '#' OR m.name LIKE '%#_error' ESCAPE '#'
            ) THEN m.value ELSE -m.value END
    ) AS place,
    m.value, a.name || '@' || v.number AS reference, v.base_id AS base, v.base_fingerprint, v.method, v.strategy,
    v.created_at
FROM metrics m JOIN versions v ON v.id = m.version_id JOIN adapters a ON a.id = v.adapter_id
WHERE m.split = 'test';
CREATE VIEW lineage AS
WITH RECURSIVE line (version_id, ancestor_id, ancestor, generation) AS (
    SELECT version_id, parent_id, parent, 1 FROM parents
    UNION
    SELECT line.version_id, p.parent_id, p.parent, line.generation + 1
    FROM line JOIN parents p ON p.version_id = line.ancestor_id
    WHERE line.generation < 100
)
SELECT a.name || '@' || v.number AS reference, line.ancestor, line.generation, v.strategy, a.domain, a.task,
    v.created_at, line.ancestor_id IS NULL AS ancestor_removed
FROM line JOIN versions v ON v.id = line.version_id JOIN adapters a ON a.id = v.adapter_id;
CREATE INDEX alias_moves_alias ON alias_moves (adapter_id, alias, id);
CREATE TRIGGER alias_moves_are_not_changed BEFORE UPDATE ON alias_moves
BEGIN SELECT RAISE(ABORT, 'the history of aliases is only added to'); END;
CREATE TRIGGER alias_moves_are_not_deleted BEFORE DELETE ON alias_moves
BEGIN SELECT RAISE(ABORT, 'the history of aliases is only added to'); END;
COMMIT;
PRAGMA user_version = 7;
