#!/usr/bin/env bash
# Spoken commands: real speech of many speakers, digit strings and coffee orders; minutes on a CPU.
# The corpus is given as --corpus-dir, or lies in data/corpus: see README.md beside this script.
set -euo pipefail
corpus=spoken_commands
experiments=teacher,sn,ss,single
rehearse_settings=(optim.updates=12 optim.epochs=0 data.valid_utterances=4 "data.train=[labelled,unlabelled]"
  lm.optim.updates=4 lm.optim.epochs=0 lm.rescoring.nbest=5 lm.rescoring.beam=4)
source "$(dirname "${BASH_SOURCE[0]}")/../../local/stage.sh"

begin "$@"
run 0 "corpus, manifests, cut sets" prepare_corpus.py
run 1 "Fbank features" compute_fbank.py
run 2 "lexicon and units" prepare_lang.py
run 3 "n-gram language models" train_ngrams.py
run 4 "denominator and decoding graph" compile_graphs.py
run 5 "teacher's first weights" init_teacher.py
run 6 "teacher, LF-MMI on the labelled part" train.py --stage 6
run 7 "teacher's numerators for the unlabelled part" label_unlabelled.py
run 8 "T -> SN" train.py --stage 8
run 9 "SN -> SS" train.py --stage 9
run 10 "decoding" decode.py
run 11 "Transformer LM and rescoring" rescore.py
run 12 "export, real-time factor and latency" export.py
run 13 "report" report.py
finish
