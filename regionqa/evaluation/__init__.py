"""How well a model does on the user's own data, always through `Engine.answer`.

`recognition`, `vqa`, `caption` and `fineeval` each say what is asked and judge the answers;
`answers` asks and keeps what was answered; `statistics`, `report` and `plots` make figures of it.
"""
