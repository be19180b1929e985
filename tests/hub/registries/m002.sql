BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'lorary','m001_catalogue','2026-11-28 19:13:02.472151+00:00');
INSERT INTO "_sqlite_migrations" VALUES(2,'lorary','m002_pretrained_bases','2026-11-28 19:13:02.473067+00:00');
CREATE TABLE adapters (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    domain TEXT NOT NULL,
    task TEXT NOT NULL,
    -- kept here, not derived from the versions, so that the number of a removed version isn't given out again
    next_number INTEGER NOT NULL DEFAULT 1
);
INSERT INTO "adapters" VALUES(1,'finance-tone','finance','text-classification',3);
INSERT INTO "adapters" VALUES(2,'legal-ner','legal','token-classification',2);
INSERT INTO "adapters" VALUES(3,'foreign','news','text-classification',2);
INSERT INTO "adapters" VALUES(4,'gone','finance','text-classification',2);
INSERT INTO "adapters" VALUES(5,'orphan','finance','text-classification',2);
CREATE TABLE aliases (
    adapter_id INTEGER NOT NULL REFERENCES adapters (id),
    name TEXT NOT NULL,
    version_id INTEGER NOT NULL REFERENCES versions (id),
    PRIMARY KEY (adapter_id, name)
);
INSERT INTO "aliases" VALUES(1,'prod',1);
INSERT INTO "aliases" VALUES(1,'candidate',2);
CREATE TABLE base_files (base TEXT NOT NULL, name TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (base, name));
INSERT INTO "base_files" VALUES('village','config.json','665939e0da5aa211ec9832ffe5dcba176d1bbac8a95c899c270ec29082853c51',23);
CREATE TABLE bases (
    fingerprint TEXT NOT NULL,
    id TEXT NOT NULL,
    "commit" TEXT, digest TEXT, architecture TEXT, parameters INTEGER, created_at TEXT, details TEXT,
    PRIMARY KEY (fingerprint, id)
);
INSERT INTO "bases" VALUES('c796a6a7612d9b288cb539a27174ffee89f6b2cfc11ed214ca15e176c7a32859','org/tiny','cccccccccccccccccccccccccccccccccccccccc',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "bases" VALUES('ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','village',NULL,'8dbccf7e204f315c764788646d08a607d5c54e39671ee2c4f53767a3feb323ff','bert',1234,'2026-11-28T19:13:03+00:00','{"metrics": {"test": {"perplexity": 9.5}}, "provenance": {"vocabulary": 512}}');
CREATE TABLE files (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (version_id, name)
);
INSERT INTO "files" VALUES(1,'adapter_config.json','a09477217ba39ca81aca6166b21dd535e27ab9ae177388d2d4798ed6b9edbfc0',168);
INSERT INTO "files" VALUES(1,'adapter_model.safetensors','978a259a0c805b92e33823b128914ccd112d8252897c40411f6b94b0282671fc',285);
INSERT INTO "files" VALUES(1,'lorary.json','9dc727b0baa309c4712b8fe63ed6450af59fb969dec1323c65be28db466565f6',681);
INSERT INTO "files" VALUES(2,'adapter_config.json','a09477217ba39ca81aca6166b21dd535e27ab9ae177388d2d4798ed6b9edbfc0',168);
INSERT INTO "files" VALUES(2,'adapter_model.safetensors','4b3adf086b3a64ace288ee3203aee369cccd11169a4db53b51e7e5c3e1a58f16',285);
INSERT INTO "files" VALUES(2,'lorary.json','9dc727b0baa309c4712b8fe63ed6450af59fb969dec1323c65be28db466565f6',681);
INSERT INTO "files" VALUES(3,'adapter_config.json','a09477217ba39ca81aca6166b21dd535e27ab9ae177388d2d4798ed6b9edbfc0',168);
INSERT INTO "files" VALUES(3,'adapter_model.safetensors','9a34e6e331e107c56cd311f4e8f0adf20d8fe266efb9d5bcb619e8d606ac3392',285);
INSERT INTO "files" VALUES(3,'lorary.json','f10e5e84f0f7b47bcf82c22a0235d45686f7314d2173be770799a8cdfbed84fb',680);
INSERT INTO "files" VALUES(4,'adapter_config.json','a09477217ba39ca81aca6166b21dd535e27ab9ae177388d2d4798ed6b9edbfc0',168);
INSERT INTO "files" VALUES(4,'adapter_model.safetensors','e18ecabde420ae89723c25e1dc6ed3e375d5f799386781f38a91108e2a46e9a8',285);
INSERT INTO "files" VALUES(6,'adapter_config.json','a09477217ba39ca81aca6166b21dd535e27ab9ae177388d2d4798ed6b9edbfc0',168);
INSERT INTO "files" VALUES(6,'adapter_model.safetensors','b9a128abd42ffac692599aef2cab0021a5a8628b3d0b241a59753321914f5b08',285);
INSERT INTO "files" VALUES(6,'lorary.json','9dc727b0baa309c4712b8fe63ed6450af59fb969dec1323c65be28db466565f6',681);
CREATE TABLE lineage (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    -- the reference stays true when the parent is removed, since numbers aren't given out again
    parent TEXT NOT NULL,
    parent_id INTEGER REFERENCES versions (id) ON DELETE SET NULL,
    PRIMARY KEY (version_id, parent)
);
INSERT INTO "lineage" VALUES(2,'finance-tone@1',1);
INSERT INTO "lineage" VALUES(6,'gone@1',NULL);
CREATE TABLE metrics (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    split TEXT NOT NULL,
    name TEXT NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (version_id, split, name)
);
INSERT INTO "metrics" VALUES(1,'test','f1',0.7);
INSERT INTO "metrics" VALUES(1,'test','loss',0.6);
INSERT INTO "metrics" VALUES(2,'test','f1',0.9);
INSERT INTO "metrics" VALUES(2,'test','loss',0.4);
INSERT INTO "metrics" VALUES(2,'untrained','f1',0.25);
INSERT INTO "metrics" VALUES(3,'test','f1',0.8);
INSERT INTO "metrics" VALUES(4,'test','f1',0.95);
CREATE TABLE tags (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    tag TEXT NOT NULL,
    PRIMARY KEY (version_id, tag)
);
INSERT INTO "tags" VALUES(1,'news');
INSERT INTO "tags" VALUES(1,'english');
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
    manifest TEXT,
    UNIQUE (adapter_id, number),
    UNIQUE (adapter_id, digest)
);
INSERT INTO "versions" VALUES(1,1,1,'c5d4a1b08c70b3657fc7bbc0c1f7c5fe648d639e56ec44c2835eaefb62f8af8b','org/tiny','c796a6a7612d9b288cb539a27174ffee89f6b2cfc11ed214ca15e176c7a32859','lora','none',2,16,285,'2026-11-28T19:13:02+00:00','import','{
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
');
INSERT INTO "versions" VALUES(2,1,2,'4509ae19df5573c0ffdad5c3f396501f087771f17dc490aeaf2800c869d8b71c','org/tiny','c796a6a7612d9b288cb539a27174ffee89f6b2cfc11ed214ca15e176c7a32859','lora','none',2,16,285,'2026-11-28T19:13:02+00:00','fine-tune','{
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
');
INSERT INTO "versions" VALUES(3,2,1,'09f2a90864965f10247041ba3194837bc29889cf01a6ee3f3fde5a4d0fff0a26','org/tiny','c796a6a7612d9b288cb539a27174ffee89f6b2cfc11ed214ca15e176c7a32859','lora','none',2,16,285,'2026-11-28T19:13:02+00:00','import','{
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
');
INSERT INTO "versions" VALUES(4,3,1,'e45bf56a554dff76463d3c27aa8c40de766091f0a8608fd2572b13e1e1484ea7','org/tiny',NULL,'lora','none',2,16,285,'2026-11-28T19:13:02+00:00','import',NULL);
INSERT INTO "versions" VALUES(6,5,1,'e13b45aa45224d71b6c436f3511a757ee7a5e6816cacc75ce57e40e9929a590d','org/tiny','c796a6a7612d9b288cb539a27174ffee89f6b2cfc11ed214ca15e176c7a32859','lora','none',2,16,285,'2026-11-28T19:13:03+00:00','fine-tune','{
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
');
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE INDEX adapters_domain_task ON adapters (domain, task);
CREATE INDEX adapters_task ON adapters (task);
CREATE INDEX versions_digest ON versions (digest);
CREATE INDEX versions_base_id ON versions (base_id);
CREATE INDEX versions_base_fingerprint ON versions (base_fingerprint);
CREATE INDEX files_sha256 ON files (sha256);
CREATE INDEX aliases_version ON aliases (version_id);
CREATE INDEX tags_tag ON tags (tag);
CREATE INDEX lineage_parent ON lineage (parent_id);
CREATE INDEX bases_id ON bases (id);
CREATE UNIQUE INDEX bases_pretrained ON bases (id) WHERE digest IS NOT NULL;
COMMIT;
PRAGMA user_version = 2;
