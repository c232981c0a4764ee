"""The commonest words of languages that share a script, and English stop words."""

from __future__ import annotations

from collections.abc import Mapping

from palestra.verifiers.instructions.reply import words_of

# By ISO 639-1 code: the words that fill about a third or more of running text. Words that several
# languages of a script share count for each, and so tell nothing.
FUNCTION_WORDS: Mapping[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "a the of and to in is that it was for on are as with his they be at this have "
        "from or had by but not what all were we when your can said there use an each "
        "which she do how their if will up other about out many then them these so some "
        "her would make like him into has more you i my he its our who been than only "
        "could also just because while where don't it's no any should must every most "
        "without after before over such through between under both being does did is are "
        "since until though although however during within too very much again off few "
        "why whether per",
        "es": "el la de que y en un una los las se del por con no su para es al lo como más o pero "
        "sus le ya este sí porque esta entre cuando muy sin sobre también me hasta hay donde "
        "quien desde todo nos durante todos uno les ni contra otros ese eso ante ellos e esto "
        "mí antes algunos qué unos yo otro otras otra él tanto esa estos mucho nada muchos "
        "cual poco ella están ser son fue puede si está tiene cada hacer así debe han te tu "
        "mi",
        "pt": "o a de que e do da em um para é com não uma os no se na por mais as dos como mas "
        "foi ao ele das tem à seu sua ou ser quando muito há nos já está eu também só "
        "pelo pela até isso ela entre era depois sem mesmo aos ter seus quem nas me esse "
        "eles estão você tinha foram essa num nem suas meu às minha têm numa pelos elas "
        "havia seja qual será nós tenho são pode cada fazer então deve este esta sobre "
        "isto aqui porque onde",
        "fr": "le la de et les des en un une du que est pour qui dans a par plus pas au sur ne se "
        "ce il sont avec son ou aux mais comme cette ses d'un d'une qu'il c'est elle nous "
        "vous ils leur être fait tout aussi sa ces été si même ont peut entre sans je on y "
        "deux lui bien où très encore mon ma mes votre notre leurs quand cela l'on n'est j'ai "
        "avoir alors chaque donc toujours pendant dont",
        "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als "
        "auch es an werden aus er hat dass sie nach wird bei einer um am sind noch wie einem "
        "über einen so zum war haben nur oder aber vor zur bis mehr durch man kann wenn ich "
        "wir ihr sein ihre ihren seine diese dieser dieses unter schon gegen vom sehr was "
        "hier alle mich mir uns dich können muss doch kein keine damit denn weil beim",
        "it": "di e il la che in a per un è una non sono del si della con i da le gli al nel dei "
        "come più anche lo ha alla delle ma o se dal su questo questa degli tra ci essere "
        "nella stato loro quando sua suo dalla io hanno sul ai dove molto ancora cosa perché "
        "ne tutto mi era cui fare ogni può solo senza sia già lui lei noi voi tutti proprio "
        "quello quella ed dopo prima così poi però",
        "nl": "de het een van en in is dat op te zijn met voor niet die aan er ook als maar om dan "
        "bij uit door naar wordt worden was heeft hebben ik je we ze hij kan over nog of zich "
        "tot meer wat deze dit zo geen wel waar moet alle hun haar mijn onze ons veel zou "
        "tegen na al onder toch omdat kunnen wij u jij jou mij hem daar hier heel",
        "pl": "i w na z nie się do to jest że o jak a po co tak za od ale dla przez jego czy tylko "
        "są ich być może już lub oraz ten tym które który która był było była były przy tego "
        "jej ma go pod gdy we bardzo aby także więc można ze jednak kiedy mnie mi ja ty my wy "
        "on ona oni bez nad każdy tej te ta swoje nas nam jako przed",
        "cs": "a je se v na to že s z do o i ve jsem za by ale jako k tak po jsou pro jeho jak "
        "bylo ze být si jen už která který které od nebo ten byl byla co má aby může při "
        "také než mezi až když není jsme tento této této pak tím bez proto jeho její "
        "jejich já ty my vy on ona u ke",
        "ro": "și de în a la cu o un pe nu este din că se mai să pentru care sau ce au lui prin fi "
        "ca sunt dar după fost acest această dintre între doar când fără am ai el ea noi voi "
        "ei foarte poate cum fie astfel unei unui cele cei cel lor ale al deci până dacă îi "
        "îl le",
        "hu": "a az és hogy nem is egy ez meg van csak volt de el mint még már azt ha vagy ki ami "
        "aki amely be sem lehet kell minden után majd fel mert le ezt így azonban pedig én te "
        "ő mi ti ők nagyon itt ott olyan lesz való által során között szerint ezek azok",
        "fi": "ja on ei että oli se hän mutta ovat kun niin myös ole olla kuin mukaan joka jos sen "
        "nyt tai sekä jo vain ne mitä voi sitä hänen jonka olen minä sinä me te he tämä tämän "
        "siitä siinä ennen kanssa joita jotka voivat ollut vielä kaikki hyvin koska kuten "
        "aina",
        "sv": "och i att det som en på är av för med den till inte de om ett han men var jag sig "
        "från vi så kan man när år hon under också efter eller nu sin där vid mot ska skulle "
        "kommer ut får finns vara hade alla andra mycket än här då sedan över bara blir upp "
        "även vad du mig dig oss er ni detta dessa eftersom genom",
        "da": "og i at det er en til på af for med den ikke de som der et han men var jeg sig fra "
        "vi så kan man når hun også efter eller nu sin hvor ved mod skal ville kommer ud får "
        "vil være havde alle andre meget end her da siden over kun bliver op hvad du mig dig "
        "os jer dette disse fordi gennem blev",
        "tr": "ve bir bu da de için ile çok daha gibi olarak olan en kadar ne var o ama sonra ki "
        "değil her ya mi mı ben sen biz siz onlar ise veya hem diye göre şey bunu olduğu olur "
        "oldu yok nasıl neden önce bütün tüm kendi arasında hiç ancak şu ayrıca çünkü",
        "id": "yang dan di itu dengan untuk tidak ini dari dalam akan pada juga saya ke karena "
        "tersebut bisa ada mereka lebih kata tahun sudah atau saat oleh menjadi orang ia "
        "telah adalah seperti sebagai bahwa dapat para harus namun kita dua satu masih hari "
        "hanya kepada kami anda secara agar setelah jika sangat dia kamu aku bukan",
        "vi": "và của là có không cho được các một người trong với những này để khi đã từ đến về "
        "như tôi thì cũng bạn ở lại ra vào sẽ nhiều hơn nhưng đó nếu làm phải rất hay bị "
        "chúng trên còn theo đang vì năm mà nó ông anh em cô hoặc thể bằng sau mình",
        "sw": "na ya wa kwa ni za katika la kuwa cha hii yake kama au huo hiyo vya hilo pia wake "
        "hivyo mtu watu si hata sana yao wao kwamba ili baada lakini bila zaidi hizi haya "
        "hayo hawa kila wakati ambayo ambao mimi wewe yeye sisi nyinyi yangu yako yetu hapa "
        "huu kutoka kabla moja mbili tu bado",
        # Cyrillic
        "ru": "и в не на что с по это как к но из у за то все от так для же вы бы о его еще ещё "
        "или мы если они уже только был была было были её ее при до может когда чтобы "
        "есть я ты он она также быть этого который которые очень нет во со их чем под без "
        "более после эти этот можно лучше",
        "uk": "і в не на що з та у до як за це від для по й або але його є про він вона вони ми ви "
        "я ти якщо так тільки був була було були її при може коли щоб також бути цього який "
        "яка які дуже немає їх чим під без більше після ці цей можна через ще вже бо де",
        "bg": "и на в да се за от са не с е по което че като до при или този тази това които който "
        "но ще има през беше след между още само как така към най във със бъде всички всеки "
        "много може без защото ние вие те той тя аз ти един една когато където сме сте съм",
        # Devanagari
        "hi": "है के में की का और से को पर यह हैं ने कि भी एक नहीं तो ही था वह इस लिए थे हो कर या "
        "अपने जो थी किया गया करने साथ बाद होता रहे करते कुछ जब तक मैं हम आप वे उन उस इसके "
        "लेकिन अगर क्या कोई सभी बहुत अधिक",
        "mr": "आहे आणि या च्या हे ते की आहेत व तो ती होते होता होती असे नाही मध्ये साठी केले "
        "करण्यात त्या त्यांनी आपण मी आम्ही तुम्ही पण किंवा एक हा ही जे त्याच्या तर असते काही "
        "सर्व खूप जर म्हणून करू आपल्या तुमच्या त्यामुळे कारण झाले",
        "ne": "छ र मा को का लाई ले पनि यो हो भने छन् गर्न गरेको भएको यस हुन्छ थियो गर्ने तर म हामी "
        "तपाईं उनी उनले अनि वा धेरै सबै छैन गर्नुहोस् आफ्नो हुन् कि त एक भन्ने यदि लागि सक्छ "
        "गर्छ के",
        # Arabic script
        "ar": "في من على أن إلى التي الذي هذا هذه عن مع ما لا كان كانت أو ثم قد بعد بين كل هو هي "
        "ذلك لم حيث إن عند غير أي منذ و يمكن يكون لكن إذا كما نحن أنت أنا هم تم خلال أكثر ليس "
        "حتى قبل بها",
        "fa": "و در به از که این را با است برای آن یک خود تا بر هم نیز شده می بود او اما یا ما شما "
        "آنها باید کرد شود هر دیگر پس اگر چون بین های ها کند باشد هستند دارد من تو بسیار همه "
        "نیست",
        "ur": "کے میں کی ہے اور سے کا کو اس ہیں پر نے یہ کہ بھی ایک وہ ان کر تھا جو ہو گیا نہیں "
        "لیے کیا تھے تھی ہی یا تو آپ ہم مجھے اپنے جب تک لیکن اگر کوئی بہت ہوتا زیادہ ساتھ "
        "بعد",
    }.items()
}

# What IFBench's "stop words" are: English function words, as common lists have them.
ENGLISH_STOP_WORDS = frozenset(
    words_of(
        "i me my myself we our ours ourselves you your yours yourself yourselves he him his "
        "himself she her hers herself it its itself they them their theirs themselves what "
        "which who whom this that these those am is are was were be been being have has had "
        "having do does did doing a an the and but if or because as until while of at by for "
        "with about against between into through during before after above below to from up "
        "down in out on off over under again further then once here there when where why how "
        "all any both each few more most other some such no nor not only own same so than too "
        "very can will just should now ain't aren't can't couldn't didn't doesn't don't hadn't "
        "hasn't haven't isn't mustn't needn't shan't shouldn't wasn't weren't won't wouldn't "
        "i'm i've i'd i'll you're you've you'll you'd he's he'd he'll she's she'd she'll it's "
        "it'll we're we've we'd we'll they're they've they'd they'll that's that'll"
    )
)
